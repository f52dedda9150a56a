// attention on the CPU: checks, allocation, threads. Arithmetic: attention_kernel.cpp.
#include "attention.h"

#include "common.h"

namespace smartcs {
namespace {

AttentionShape checked_shape(const at::Tensor& qkv, const at::Tensor& cu_seqlens, int64_t max_seqlen, double scale,
                             const Dropout& dropout) {
  check_cpu_contiguous(qkv, "attention", "qkv");
  TORCH_CHECK(qkv.dim() == 4 && qkv.size(1) == 3, "attention: qkv has shape ", qkv.sizes(), ", expected (T, 3, H, D)");
  const int32_t* cu = checked_cu_seqlens(cu_seqlens, qkv.size(0), "attention", "qkv");
  const int64_t batch = cu_seqlens.numel() - 1;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = cu[b + 1] - cu[b];
    TORCH_CHECK_VALUE(length <= max_seqlen, "attention: sequence ", b, " has ", length,
                      " tokens, more than max_seqlen = ", max_seqlen);
  }
  AttentionShape shape;
  shape.cu_seqlens = cu;
  shape.batch = batch;
  shape.heads = qkv.size(2);
  shape.head_size = qkv.size(3);
  shape.max_seqlen = 0;
  for (int64_t b = 0; b < batch; ++b) shape.max_seqlen = std::max<int64_t>(shape.max_seqlen, cu[b + 1] - cu[b]);
  shape.scale = scale;
  shape.dropout = dropout;
  shape.dropout.first_row *= static_cast<uint32_t>(shape.heads);  // the offset counts tokens, a row is one of a head
  return shape;
}

template <class Kernel, class Args>
void run(Kernel kernel, const Args& args, int64_t scratch_bytes) {
  const AttentionShape& shape = args.shape;
  if (shape.max_seqlen == 0) return;  // of no tokens there may be more heads than can be counted through
  // 4 D multiply-adds per score and pass; a long-sequence item is a task of its own.
  const int64_t length = std::min<int64_t>(shape.max_seqlen, 1 << 15);
  const int64_t elements = length * length * std::min<int64_t>(shape.head_size, 1 << 15) / 4;
  at::parallel_for(0, shape.heads * shape.batch, grain(elements), [&](int64_t begin, int64_t end) {
    const auto memory = scratch(scratch_bytes);
    kernel(args, memory.get(), begin, end);
  });
}

std::tuple<at::Tensor, at::Tensor> attention_fwd(const at::Tensor& qkv, const at::Tensor& cu_seqlens,
                                                 int64_t max_seqlen, double scale, double dropout_p, int64_t seed,
                                                 int64_t stream, const std::optional<at::Tensor>& counter_offset) {
  const Dropout dropout = make_dropout(dropout_p, seed, stream, counter_offset, "attention");
  AttentionForward args;
  args.shape = checked_shape(qkv, cu_seqlens, max_seqlen, scale, dropout);
  const Storage storage = storage_of(qkv, "attention");
  at::Tensor out = empty({qkv.size(0), qkv.size(2), qkv.size(3)}, qkv.scalar_type());
  at::Tensor lse = empty({qkv.size(0), qkv.size(2)}, compute_type(qkv));
  args.qkv = qkv.const_data_ptr();
  args.out = out.data_ptr();
  args.lse = lse.data_ptr();
  const AttentionKernels& kernels = attention_kernels();
  run(kernels.forward[storage], args, kernels.forward_scratch(args.shape));
  return {out, lse};
}

at::Tensor attention_bwd(const at::Tensor& grad_out, const at::Tensor& qkv, const at::Tensor& lse,
                         const at::Tensor& cu_seqlens, int64_t max_seqlen, double scale, double dropout_p, int64_t seed,
                         int64_t stream, const std::optional<at::Tensor>& counter_offset) {
  const Dropout dropout = make_dropout(dropout_p, seed, stream, counter_offset, "attention");
  AttentionBackward args;
  args.shape = checked_shape(qkv, cu_seqlens, max_seqlen, scale, dropout);
  const Storage storage = storage_of(qkv, "attention");
  check_like(grad_out, qkv.scalar_type(), {qkv.size(0), qkv.size(2), qkv.size(3)}, "attention", "grad_out");
  check_like(lse, compute_type(qkv), {qkv.size(0), qkv.size(2)}, "attention", "lse");
  at::Tensor grad_qkv = empty(qkv.sizes(), qkv.scalar_type());
  args.grad_out = grad_out.const_data_ptr();
  args.qkv = qkv.const_data_ptr();
  args.lse = lse.const_data_ptr();
  args.grad_qkv = grad_qkv.data_ptr();
  const AttentionKernels& kernels = attention_kernels();
  run(kernels.backward[storage], args, kernels.backward_scratch(args.shape));
  return grad_qkv;
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CPU, m) {
  m.impl("attention_fwd", attention_fwd);
  m.impl("attention_bwd", attention_bwd);
}

}  // namespace smartcs
