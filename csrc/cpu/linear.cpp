// linear on the CPU: y = x W^T + bias and its gradients, by the fastest library in the process.
//
// PyTorch hands float32 products to its BLAS. That is right on Intel's CPUs; on AMD's, MKL takes a path of half the
// vector width and reaches half of what oneDNN, which PyTorch carries too, reaches on the same product (measured on an
// EPYC 9005 core at BERT's shapes: 95 against 200 GFLOP/s, forward and both gradients). PyTorch registers oneDNN's
// float32 product under the name looked up below; where it is missing, its BLAS is used as well. Nothing here depends
// on timing: a run is repeatable.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <string>

#include "common.h"

namespace smartcs {
namespace {

constexpr const char* kOp = "linear";

std::optional<c10::OperatorHandle> find_onednn() {
#if defined(__x86_64__)
  if (__builtin_cpu_is("intel")) return std::nullopt;
  auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  // (X, W, B, attr, scalars, algorithm) -> Y: not a public interface, so its shape is checked before it is trusted.
  if (!op.has_value() || !op->hasKernelForDispatchKey(c10::DispatchKey::CPU)) return std::nullopt;
  const auto& schema = op->schema();
  if (schema.arguments().size() != 6 || schema.returns().size() != 1 || schema.arguments()[3].name() != "attr") {
    return std::nullopt;
  }
  return op;
#else
  return std::nullopt;
#endif
}

const std::optional<c10::OperatorHandle>& onednn() {
  static const std::optional<c10::OperatorHandle> op = find_onednn();
  return op;
}

// Few rows are a matter of reading the weights once, which the BLAS does as fast and, adding in more lanes, more
// exactly.
bool use_onednn(const at::Tensor& x) {
  constexpr int64_t kFewRows = 32;
  return x.scalar_type() == at::kFloat && x.size(0) >= kFewRows && onednn().has_value();
}

// a b^T + bias for a (m, k) and b (n, k), either of them possibly a transposed view.
at::Tensor product(bool with_onednn, const at::Tensor& a, const at::Tensor& b,
                   const std::optional<at::Tensor>& bias = std::nullopt) {
  if (!with_onednn || a.numel() == 0 || b.numel() == 0) {
    return bias.has_value() ? at::addmm(*bias, a, b.t()) : at::mm(a, b.t());
  }
  torch::jit::Stack stack;
  stack.emplace_back(a);
  stack.emplace_back(b);
  stack.emplace_back(bias);
  stack.emplace_back("none");
  stack.emplace_back(c10::List<std::optional<at::Scalar>>());
  stack.emplace_back();  // no algorithm
  // NOLINTNEXTLINE(bugprone-unchecked-optional-access): with_onednn is use_onednn's answer
  onednn()->callBoxed(stack);
  return stack.front().toTensor();
}

// oneDNN compiles a kernel for every size it meets and keeps it (milliseconds and megabytes each), and a packed batch
// has another number of rows every step. So rows are rounded up to one of few numbers; the added ones are zero.
int64_t rounded_rows(int64_t rows) {
  const int64_t step = rows <= 256 ? 32 : rows <= 1024 ? 64 : 128;
  return ceil_div(rows, step) * step;
}

at::Tensor with_rounded_rows(const at::Tensor& x) {
  const int64_t rows = x.size(0), rounded = rounded_rows(rows);
  if (rounded == rows || !use_onednn(x)) return x;
  at::Tensor y = empty({rounded, x.size(1)}, x.scalar_type());
  y.narrow(0, 0, rows).copy_(x);
  y.narrow(0, rows, rounded - rows).zero_();
  return y;
}

void check_dtype(const at::Tensor& tensor, const char* name) {
  check_cpu_contiguous(tensor, kOp, name);
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, kOp, ": ", name, " has dtype ",
              tensor.scalar_type(), ", expected float32 or float64");
}

void check_matrix(const at::Tensor& tensor, const char* name) {
  check_dtype(tensor, name);
  TORCH_CHECK(tensor.dim() == 2, kOp, ": ", name, " has shape ", tensor.sizes(), ", expected two dimensions");
}

void check(const at::Tensor& x, const at::Tensor& weight) {
  check_dtype(x, "x");
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2, kOp, ": x has shape ", x.sizes(), " and weight ", weight.sizes(),
              ", expected (N, C_in) and (C_out, C_in)");
  check_like(weight, x.scalar_type(), {weight.size(0), x.size(1)}, kOp, "weight");
}

at::Tensor linear_fwd(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  check(x, weight);
  if (bias.has_value()) check_like(*bias, x.scalar_type(), {weight.size(0)}, kOp, "bias");
  if (!use_onednn(x)) return at::linear(x, weight, bias);
  return product(true, with_rounded_rows(x), weight, bias).narrow(0, 0, x.size(0));
}

// Of x and weight, only what a wanted gradient needs has to be there: dx needs the weight, dW needs x.
std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_bwd(const at::Tensor& grad_y, const std::optional<at::Tensor>& x,
                                                          const std::optional<at::Tensor>& weight, bool need_x,
                                                          bool need_weight, bool need_bias) {
  TORCH_CHECK(x.has_value() || !need_weight, kOp, ": x is None, expected a tensor for the gradient of weight");
  TORCH_CHECK(weight.has_value() || !need_x, kOp, ": weight is None, expected a tensor for the gradient of x");
  if (x.has_value() && weight.has_value()) {
    check(*x, *weight);
  } else if (x.has_value()) {
    check_matrix(*x, "x");
  } else if (weight.has_value()) {
    check_matrix(*weight, "weight");
  }
  check_matrix(grad_y, "grad_y");
  const at::ScalarType dtype = x.has_value() ? x->scalar_type() : weight.value_or(grad_y).scalar_type();
  const int64_t rows = x.value_or(grad_y).size(0), outputs = weight.has_value() ? weight->size(0) : grad_y.size(1);
  check_like(grad_y, dtype, {rows, outputs}, kOp, "grad_y");
  const bool fast = use_onednn(grad_y);
  const at::Tensor grad = need_x || need_weight ? with_rounded_rows(grad_y) : grad_y;
  const auto none = [&] { return empty({0}, dtype); };  // one each: results must not alias
  return {need_x ? product(fast, grad, weight->t()).narrow(0, 0, rows) : none(),
          need_weight ? product(fast, grad.t(), with_rounded_rows(*x).t()) : none(),
          need_bias ? grad_y.sum(0) : none()};
}

}  // namespace

// No tensor among its arguments, so no device to dispatch on.
TORCH_LIBRARY_IMPL(smartcs, CompositeExplicitAutograd, m) {
  m.impl("linear_library", []() -> std::string { return onednn().has_value() ? "oneDNN" : "PyTorch's BLAS"; });
}

TORCH_LIBRARY_IMPL(smartcs, CPU, m) {
  m.impl("linear_fwd", linear_fwd);
  m.impl("linear_bwd", linear_bwd);
}

}  // namespace smartcs
