// add_layer_norm on the CPU: checks, allocation, threads. Arithmetic: add_layer_norm_kernel.cpp.
#include "add_layer_norm.h"

#include "common.h"

namespace smartcs {
namespace {

constexpr const char* kOp = "add_layer_norm";

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> add_layer_norm_fwd(
    const at::Tensor& x, const std::optional<at::Tensor>& input_bias, const at::Tensor& residual,
    const at::Tensor& weight, const at::Tensor& bias, double eps, double dropout_p, int64_t seed, int64_t stream,
    const std::optional<at::Tensor>& counter_offset) {
  check_cpu_contiguous(x, kOp, "x");
  TORCH_CHECK(x.dim() == 2 && x.size(1) > 0, kOp, ": x has shape ", x.sizes(), ", expected (N, C) with C > 0");
  const Storage storage = storage_of(x, kOp);
  const int64_t rows = x.size(0), columns = x.size(1);
  const at::ScalarType dtype = x.scalar_type();
  check_like(residual, dtype, x.sizes(), kOp, "residual");
  check_like(weight, dtype, {columns}, kOp, "weight");
  check_like(bias, dtype, {columns}, kOp, "bias");
  if (input_bias.has_value()) check_like(*input_bias, dtype, {columns}, kOp, "input_bias");
  at::Tensor y = empty(x.sizes(), dtype), h = empty(x.sizes(), dtype);
  at::Tensor mean = empty({rows}, compute_type(x)), rstd = empty({rows}, compute_type(x));
  const AddLayerNormForward args{columns,
                                 eps,
                                 make_dropout(dropout_p, seed, stream, counter_offset, kOp),
                                 x.const_data_ptr(),
                                 data_or_null(input_bias),
                                 residual.const_data_ptr(),
                                 weight.const_data_ptr(),
                                 bias.const_data_ptr(),
                                 y.data_ptr(),
                                 h.data_ptr(),
                                 mean.data_ptr(),
                                 rstd.data_ptr()};
  const auto kernel = add_layer_norm_kernels().forward[storage];
  at::parallel_for(0, rows, grain(columns), [&](int64_t begin, int64_t end) {
    const auto keep = keep_row(columns);
    kernel(args, keep.get(), begin, end);
  });
  return {y, h, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> add_layer_norm_bwd(
    const at::Tensor& grad_y, const at::Tensor& h, const at::Tensor& mean, const at::Tensor& rstd,
    const at::Tensor& weight, double dropout_p, int64_t seed, int64_t stream, bool parameter_grads,
    const std::optional<at::Tensor>& counter_offset) {
  check_cpu_contiguous(h, kOp, "h");
  TORCH_CHECK(h.dim() == 2 && h.size(1) > 0, kOp, ": h has shape ", h.sizes(), ", expected (N, C) with C > 0");
  const Storage storage = storage_of(h, kOp);
  const int64_t rows = h.size(0), columns = h.size(1);
  const at::ScalarType dtype = h.scalar_type();
  check_like(grad_y, dtype, h.sizes(), kOp, "grad_y");
  check_like(mean, compute_type(h), {rows}, kOp, "mean");
  check_like(rstd, compute_type(h), {rows}, kOp, "rstd");
  check_like(weight, dtype, {columns}, kOp, "weight");
  const AddLayerNormKernels& kernels = add_layer_norm_kernels();
  const Dropout dropout = make_dropout(dropout_p, seed, stream, counter_offset, kOp);
  const int64_t count = ceil_div(rows, kernels.rows_per_partial);
  at::Tensor grad_residual = empty(h.sizes(), dtype);
  at::Tensor grad_x = empty(dropout.active() ? h.sizes() : at::IntArrayRef{0}, dtype);
  at::Tensor partials = empty({3, parameter_grads ? count : 0, columns}, compute_type(h));
  const AddLayerNormBackward args{rows,
                                  columns,
                                  dropout,
                                  grad_y.const_data_ptr(),
                                  h.const_data_ptr(),
                                  mean.const_data_ptr(),
                                  rstd.const_data_ptr(),
                                  weight.const_data_ptr(),
                                  data_or_null(grad_x),
                                  grad_residual.data_ptr(),
                                  data_or_null(partials)};
  const auto kernel = kernels.backward[storage];
  at::parallel_for(0, count, grain(columns * kernels.rows_per_partial), [&](int64_t begin, int64_t end) {
    const auto keep = keep_row(columns);
    kernel(args, keep.get(), begin, end);
  });
  std::array<at::Tensor, 3> sums;
  for (int i = 0; i < 3; ++i) {
    sums[i] = parameter_grads
                  ? summed(kernels.sum_partials[storage], partials[i].const_data_ptr(), count, columns, dtype)
                  : empty({0}, dtype);
  }
  return {grad_x, grad_residual, sums[0], sums[1], sums[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CPU, m) {
  m.impl("add_layer_norm_fwd", add_layer_norm_fwd);
  m.impl("add_layer_norm_bwd", add_layer_norm_bwd);
}

}  // namespace smartcs
