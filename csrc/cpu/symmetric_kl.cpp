// symmetric_kl on the CPU: checks, allocation, threads. Arithmetic: symmetric_kl_kernel.cpp.
#include "symmetric_kl.h"

#include "common.h"

namespace smartcs {
namespace {

constexpr const char* kOp = "symmetric_kl";

void check(const at::Tensor& a, const at::Tensor& b, bool bernoulli) {
  check_cpu_contiguous(a, kOp, "a");
  TORCH_CHECK(a.dim() == 2 && a.size(1) > 0, kOp, ": a has shape ", a.sizes(), ", expected (N, K) with K > 0");
  TORCH_CHECK(!bernoulli || a.size(1) == 1, kOp, ": a has shape ", a.sizes(), ", expected (N, 1) for binary logits");
  check_like(b, a.scalar_type(), a.sizes(), kOp, "b");
}

at::Tensor symmetric_kl_fwd(const at::Tensor& a, const at::Tensor& b, bool bernoulli) {
  check(a, b, bernoulli);
  const Storage storage = storage_of(a, kOp);
  at::Tensor loss = empty({a.size(0)}, compute_type(a));
  const SymmetricKlForward args{a.size(1), bernoulli, a.const_data_ptr(), b.const_data_ptr(), loss.data_ptr()};
  const auto kernel = symmetric_kl_kernels().forward[storage];
  // Each class costs a few exponentials: one counts for some thirty simple elements.
  at::parallel_for(0, a.size(0), grain(32 * a.size(1)), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return loss;
}

std::tuple<at::Tensor, at::Tensor> symmetric_kl_bwd(const at::Tensor& grad_loss, const at::Tensor& a,
                                                    const at::Tensor& b, bool bernoulli, bool detach_targets,
                                                    bool need_a, bool need_b) {
  check(a, b, bernoulli);
  const Storage storage = storage_of(a, kOp);
  check_like(grad_loss, compute_type(a), {a.size(0)}, kOp, "grad_loss");
  at::Tensor grad_a = empty(need_a ? a.sizes() : at::IntArrayRef{0}, a.scalar_type());
  at::Tensor grad_b = empty(need_b ? a.sizes() : at::IntArrayRef{0}, a.scalar_type());
  const SymmetricKlBackward args{
      a.size(1),          bernoulli,          detach_targets,       grad_loss.const_data_ptr(),
      a.const_data_ptr(), b.const_data_ptr(), data_or_null(grad_a), data_or_null(grad_b)};
  const auto kernel = symmetric_kl_kernels().backward[storage];
  at::parallel_for(0, a.size(0), grain(64 * a.size(1)), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return {grad_a, grad_b};
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CPU, m) {
  m.impl("symmetric_kl_fwd", symmetric_kl_fwd);
  m.impl("symmetric_kl_bwd", symmetric_kl_bwd);
}

}  // namespace smartcs
