// symmetric_kl on the GPU: checks, allocation, launch. Arithmetic: symmetric_kl.cuh.
#include "symmetric_kl.cuh"

#include "launch.h"

namespace smartcs::cuda {
namespace {

constexpr const char* kOp = "symmetric_kl";

void check(const at::Tensor& a, const at::Tensor& b, bool bernoulli) {
  check_cuda_contiguous(a, kOp, "a");
  TORCH_CHECK(a.dim() == 2 && a.size(1) > 0, kOp, ": a has shape ", a.sizes(), ", expected (N, K) with K > 0");
  TORCH_CHECK(!bernoulli || a.size(1) == 1, kOp, ": a has shape ", a.sizes(), ", expected (N, 1) for binary logits");
  check_like(b, a.scalar_type(), a.sizes(), a.device(), kOp, "b");
}

at::Tensor symmetric_kl_fwd(const at::Tensor& a, const at::Tensor& b, bool bernoulli) {
  check(a, b, bernoulli);
  at::Tensor loss = empty({a.size(0)}, compute_type(a), a.device());
  const SymmetricKlForward args{a.size(0),          a.size(1),          bernoulli,
                                a.const_data_ptr(), b.const_data_ptr(), data_or_null(loss)};
  launch_for(a, kOp, [&](auto zero, cudaStream_t stream) { symmetric_kl_forward<decltype(zero)>(args, stream); });
  return loss;
}

std::tuple<at::Tensor, at::Tensor> symmetric_kl_bwd(const at::Tensor& grad_loss, const at::Tensor& a,
                                                    const at::Tensor& b, bool bernoulli, bool detach_targets,
                                                    bool need_a, bool need_b) {
  check(a, b, bernoulli);
  check_like(grad_loss, compute_type(a), {a.size(0)}, a.device(), kOp, "grad_loss");
  at::Tensor grad_a = empty(need_a ? a.sizes() : at::IntArrayRef{0}, a.scalar_type(), a.device());
  at::Tensor grad_b = empty(need_b ? a.sizes() : at::IntArrayRef{0}, a.scalar_type(), a.device());
  const SymmetricKlBackward args{a.size(0),
                                 a.size(1),
                                 bernoulli,
                                 detach_targets,
                                 grad_loss.const_data_ptr(),
                                 a.const_data_ptr(),
                                 b.const_data_ptr(),
                                 data_or_null(grad_a),
                                 data_or_null(grad_b)};
  launch_for(a, kOp, [&](auto zero, cudaStream_t stream) { symmetric_kl_backward<decltype(zero)>(args, stream); });
  return {grad_a, grad_b};
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CUDA, m) {
  m.impl("symmetric_kl_fwd", symmetric_kl_fwd);
  m.impl("symmetric_kl_bwd", symmetric_kl_bwd);
}

}  // namespace smartcs::cuda
