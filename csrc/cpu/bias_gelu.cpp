// bias_gelu on the CPU: checks, allocation, threads. Arithmetic: bias_gelu_kernel.cpp.
#include "bias_gelu.h"

#include "common.h"

namespace smartcs {
namespace {

constexpr const char* kOp = "bias_gelu";

void check(const at::Tensor& x, const std::optional<at::Tensor>& bias) {
  check_cpu_contiguous(x, kOp, "x");
  TORCH_CHECK(x.dim() == 2, kOp, ": x has shape ", x.sizes(), ", expected (N, C)");
  if (bias.has_value()) check_like(*bias, x.scalar_type(), {x.size(1)}, kOp, "bias");
}

at::Tensor bias_gelu_fwd(const at::Tensor& x, const std::optional<at::Tensor>& bias) {
  check(x, bias);
  const Storage storage = storage_of(x, kOp);
  at::Tensor y = empty(x.sizes(), x.scalar_type());
  if (y.numel() == 0) return y;  // of no columns there may be more rows than can be counted through
  const BiasGeluForward args{x.size(1), x.const_data_ptr(), data_or_null(bias), y.data_ptr()};
  const auto kernel = bias_gelu_kernels().forward[storage];
  at::parallel_for(0, x.size(0), grain(x.size(1)), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return y;
}

std::tuple<at::Tensor, at::Tensor> bias_gelu_bwd(const at::Tensor& grad_y, const at::Tensor& x,
                                                 const std::optional<at::Tensor>& bias, bool bias_grad) {
  check(x, bias);
  const Storage storage = storage_of(x, kOp);
  const at::ScalarType dtype = x.scalar_type();
  check_like(grad_y, dtype, x.sizes(), kOp, "grad_y");
  const BiasGeluKernels& kernels = bias_gelu_kernels();
  const int64_t rows = x.size(0), columns = x.size(1), count = ceil_div(rows, kernels.rows_per_partial);
  at::Tensor grad_x = empty(x.sizes(), dtype);
  if (columns == 0) return {grad_x, empty({0}, dtype)};
  at::Tensor partials = empty({bias_grad ? count : 0, columns}, compute_type(x));
  const BiasGeluBackward args{rows,
                              columns,
                              grad_y.const_data_ptr(),
                              x.const_data_ptr(),
                              data_or_null(bias),
                              grad_x.data_ptr(),
                              data_or_null(partials)};
  const auto kernel = kernels.backward[storage];
  at::parallel_for(0, count, grain(columns * kernels.rows_per_partial),
                   [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  at::Tensor grad_bias = bias_grad
                             ? summed(kernels.sum_partials[storage], partials.const_data_ptr(), count, columns, dtype)
                             : empty({0}, dtype);
  return {grad_x, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CPU, m) {
  m.impl("bias_gelu_fwd", bias_gelu_fwd);
  m.impl("bias_gelu_bwd", bias_gelu_bwd);
}

}  // namespace smartcs
