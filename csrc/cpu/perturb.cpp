// SMART's noise and adversarial step on the CPU: checks, allocation, threads. Arithmetic: perturb_kernel.cpp.
#include "perturb.h"

#include <string>

#include "common.h"

namespace smartcs {
namespace {

at::Tensor perturb_noise(const at::Tensor& like, double std, int64_t seed, int64_t stream,
                         const std::optional<at::Tensor>& counter_offset) {
  constexpr const char* kOp = "perturb_noise";
  TORCH_CHECK(like.device().is_cpu(), kOp, ": like is on ", like.device(), ", expected a CPU tensor");
  TORCH_CHECK(like.dim() == 2, kOp, ": like has shape ", like.sizes(), ", expected (N, C)");
  const Storage storage = storage_of(like, kOp);
  const int64_t columns = like.size(1);
  at::Tensor noise = empty(like.sizes(), like.scalar_type());
  const Counters counters = counted(stream, counter_offset, kOp);
  if (noise.numel() == 0) return noise;  // of no columns there may be more rows than can be counted through
  const PerturbNoise args{columns,         std,          static_cast<uint64_t>(seed),
                          counters.stream, counters.row, data_or_null(noise)};
  const auto kernel = perturb_kernels().noise[storage];
  // A number costs a logarithm, a root, a sine and a cosine for two.
  at::parallel_for(0, like.size(0), grain(8 * columns), [&](int64_t begin, int64_t end) {
    const auto row = keep_row(columns);
    kernel(args, row.get(), begin, end);
  });
  return noise;
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

// NOLINTBEGIN(performance-unnecessary-value-param): an operator's strings are passed so
std::tuple<at::Tensor, at::Tensor> perturb_step(const at::Tensor& v, const at::Tensor& g,
                                                const std::optional<at::Tensor>& cu_seqlens, std::string update,
                                                std::string norm, double step_size, double radius, double norm_eps) {
  // NOLINTEND(performance-unnecessary-value-param)
  constexpr const char* kOp = "perturb";
  check_cpu_contiguous(v, kOp, "v");
  TORCH_CHECK(v.dim() == 2 && v.size(1) > 0, kOp, ": v has shape ", v.sizes(), ", expected (N, C) with C > 0");
  check_like(g, v.scalar_type(), v.sizes(), kOp, "g");
  const Storage storage = storage_of(v, kOp);
  const int64_t rows = v.size(0), columns = v.size(1);
  const int32_t* offsets = cu_seqlens.has_value() ? checked_cu_seqlens(*cu_seqlens, rows, kOp, "v") : nullptr;
  const int64_t groups = cu_seqlens.has_value() ? cu_seqlens->numel() - 1 : rows;
  at::Tensor moved = empty(v.sizes(), v.scalar_type()), statistics = empty({groups, 3}, compute_type(v));
  const PerturbStep args{columns,
                         offsets,
                         parsed_update(update),
                         parsed_norm(norm),
                         step_size,
                         radius,
                         norm_eps,
                         v.const_data_ptr(),
                         g.const_data_ptr(),
                         data_or_null(moved),
                         data_or_null(statistics)};
  const auto kernel = perturb_kernels().step[storage];
  const int64_t rows_per_group = groups > 0 ? ceil_div(rows, groups) : 1;
  at::parallel_for(0, groups, grain(rows_per_group * columns),
                   [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return {moved, statistics};
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CPU, m) {
  m.impl("perturb_noise", perturb_noise);
  m.impl("perturb_step", perturb_step);
}

}  // namespace smartcs
