// SMART's noise and adversarial step on the GPU: checks, allocation, launch. Arithmetic: perturb.cuh.
#include "perturb.cuh"

#include <string>

#include "launch.h"

namespace smartcs::cuda {
namespace {

at::Tensor noise(const at::Tensor& like, double std, int64_t seed, int64_t stream_number,
                 const std::optional<at::Tensor>& counter_offset) {
  constexpr const char* kOp = "perturb_noise";
  TORCH_CHECK(like.device().is_cuda(), kOp, ": like is on ", like.device(), ", expected a CUDA tensor");
  TORCH_CHECK(like.dim() == 2, kOp, ": like has shape ", like.sizes(), ", expected (N, C)");
  TORCH_CHECK(noise_threads(like.size(0), like.size(1)) <= UINT32_MAX, kOp, ": like has shape ", like.sizes(),
              ", more than the 2^36 numbers that one launch draws");
  at::Tensor drawn = empty(like.sizes(), like.scalar_type(), like.device());
  const PerturbNoise args{like.size(0),
                          like.size(1),
                          std,
                          static_cast<uint64_t>(seed),
                          static_cast<uint64_t>(stream_number),
                          checked_offset(counter_offset, like.device(), kOp),
                          data_or_null(drawn)};
  launch_for(like, kOp, [&](auto zero, cudaStream_t stream) { perturb_noise<decltype(zero)>(args, stream); });
  return drawn;
}

Update parsed_update(const std::string& name) {
  if (name == "mtdnn") return Update::mtdnn;
  if (name == "projected") return Update::projected;
  TORCH_CHECK(name == "paper", "perturb: update is '", name, "', expected one of mtdnn, projected, paper");
  return Update::paper;
}

Norm parsed_norm(const std::string& name) {
  if (name == "inf") return Norm::inf;
  if (name == "2") return Norm::two;
  TORCH_CHECK(name == "1", "perturb: norm is '", name, "', expected one of inf, 2, 1");
  return Norm::one;
}

// What cu_seqlens holds is not looked at: that would make the host wait for the device. The kernel stays within v.
std::tuple<at::Tensor, at::Tensor> step(const at::Tensor& v, const at::Tensor& g,
                                        const std::optional<at::Tensor>& cu_seqlens, std::string update,
                                        std::string norm, double step_size, double radius, double norm_eps) {
  constexpr const char* kOp = "perturb";
  check_cuda_contiguous(v, kOp, "v");
  TORCH_CHECK(v.dim() == 2 && v.size(1) > 0, kOp, ": v has shape ", v.sizes(), ", expected (N, C) with C > 0");
  check_like(g, v.scalar_type(), v.sizes(), v.device(), kOp, "g");
  int64_t groups = v.size(0);
  if (cu_seqlens.has_value()) {
    TORCH_CHECK(cu_seqlens->dim() == 1 && cu_seqlens->numel() >= 1, kOp, ": cu_seqlens has shape ", cu_seqlens->sizes(),
                ", expected (B + 1,)");
    check_like(*cu_seqlens, at::kInt, cu_seqlens->sizes(), v.device(), kOp, "cu_seqlens");
    groups = cu_seqlens->numel() - 1;
  }
  at::Tensor moved = empty(v.sizes(), v.scalar_type(), v.device());
  at::Tensor statistics = empty({groups, 3}, compute_type(v), v.device());
  const PerturbStep args{v.size(0),
                         groups,
                         v.size(1),
                         cu_seqlens.has_value() ? cu_seqlens->const_data_ptr<int32_t>() : nullptr,
                         parsed_update(update),
                         parsed_norm(norm),
                         step_size,
                         radius,
                         norm_eps,
                         v.const_data_ptr(),
                         g.const_data_ptr(),
                         data_or_null(moved),
                         data_or_null(statistics)};
  launch_for(v, kOp, [&](auto zero, cudaStream_t stream) { perturb_step<decltype(zero)>(args, stream); });
  return {moved, statistics};
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CUDA, m) {
  m.impl("perturb_noise", noise);
  m.impl("perturb_step", step);
}

}  // namespace smartcs::cuda
