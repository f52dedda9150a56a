// adamw on the GPU: checks, the rows of the table, launch. Arithmetic: adamw.cuh.
//
// Transposed packed weights, sparse gradients and row flags are the CPU's.
#include "adamw.cuh"

#include <ATen/core/List.h>

#include <limits>
#include <string>

#include "launch.h"

namespace smartcs::cuda {
namespace {

constexpr const char* kOp = "adamw";

using OptionalTensors = c10::List<std::optional<at::Tensor>>;
using Doubles = at::ArrayRef<double>;

std::string name_of(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

bool given(at::TensorList tensors, size_t i) {
  return !tensors.empty() && tensors[i].numel() > 0;
}

void* checked(const at::Tensor& tensor, const at::Tensor& parameter, const char* list, size_t i) {
  check_like(tensor, parameter.scalar_type(), parameter.sizes(), parameter.device(), kOp, name_of(list, i).c_str());
  return data_or_null(tensor);
}

// The arguments of the op that there is one of for every parameter; lists of extras may be empty.
struct Lists {
  at::TensorList params;
  const OptionalTensors &grads, &grad_rows;
  at::TensorList exp_avgs, exp_avg_sqs, steps, anchors, packed, packed_t, row_flags;
  Doubles lr, beta1, beta2, eps, weight_decay;
};

void check_lengths(const Lists& lists) {
  const size_t count = lists.params.size();
  const auto check = [&](size_t length, const char* name, bool may_be_empty) {
    TORCH_CHECK_VALUE(length == count || (may_be_empty && length == 0), kOp, ": ", name, " has ", length,
                      " elements, expected ", count, " like params");
  };
  check(lists.grads.size(), "grads", false);
  check(lists.exp_avgs.size(), "exp_avgs", false);
  check(lists.exp_avg_sqs.size(), "exp_avg_sqs", false);
  check(lists.steps.size(), "steps", false);
  check(lists.grad_rows.size(), "grad_rows", true);
  check(lists.anchors.size(), "anchors", true);
  check(lists.packed.size(), "packed", true);
  check(lists.packed_t.size(), "packed_t", true);
  check(lists.row_flags.size(), "row_flags", true);
  check(lists.lr.size(), "lr", false);
  check(lists.beta1.size(), "beta1", false);
  check(lists.beta2.size(), "beta2", false);
  check(lists.eps.size(), "eps", false);
  check(lists.weight_decay.size(), "weight_decay", false);
}

void* checked_step(const at::Tensor& step, const at::Tensor& parameter, size_t i) {
  const std::string name = name_of("steps", i);
  check_cuda_contiguous(step, kOp, name.c_str());
  TORCH_CHECK(step.dim() == 0 && (step.scalar_type() == at::kFloat || step.scalar_type() == at::kDouble) &&
                  step.device() == parameter.device(),
              kOp, ": ", name, " is ", step.scalar_type(), " of shape ", step.sizes(), " on ", step.device(),
              ", expected one number in float32 or float64 on ", parameter.device());
  return step.data_ptr();
}

// Checks everything about one parameter and writes nothing.
AdamWTensor row_of(const Lists& lists, size_t i) {
  const at::Tensor& parameter = lists.params[i];
  const at::ScalarType dtype = parameter.scalar_type();
  check_cuda_contiguous(parameter, kOp, name_of("params", i).c_str());
  TORCH_CHECK(parameter.device() == lists.params[0].device(), kOp, ": ", name_of("params", i), " is on ",
              parameter.device(), ", expected ", lists.params[0].device(), " like the first");
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, kOp, ": ", name_of("params", i), " has dtype ", dtype,
                   ", expected float32 or float64");
  TORCH_CHECK(lists.grad_rows.empty() || !std::optional<at::Tensor>(lists.grad_rows[i]).has_value(), kOp, ": ",
              name_of("grad_rows", i), " is given, but sparse gradients have no CUDA kernel");
  TORCH_CHECK(!given(lists.packed_t, i) && !given(lists.row_flags, i), kOp, ": ", name_of("packed_t", i),
              " or row_flags is given, but only CPU kernels take them");
  AdamWTensor row{};
  row.theta = data_or_null(parameter);
  row.size = parameter.numel();
  row.wide = dtype == at::kDouble;
  if (given(lists.anchors, i)) row.anchor = checked(lists.anchors[i], parameter, "anchors", i);
  const std::optional<at::Tensor> grad = lists.grads[i];
  if (given(lists.packed, i)) {
    TORCH_CHECK(grad.has_value() && !row.wide, kOp, ": ", name_of("packed", i),
                " is given, expected a float32 parameter with a gradient");
    const at::Tensor& low = lists.packed[i];
    check_like(low, at::kBFloat16, parameter.sizes(), parameter.device(), kOp, name_of("packed", i).c_str());
    row.low = static_cast<bf16*>(data_or_null(low));
  }
  if (!grad.has_value()) return row;
  row.grad = checked(*grad, parameter, "grads", i);
  row.exp_avg = checked(lists.exp_avgs[i], parameter, "exp_avgs", i);
  row.exp_avg_sq = checked(lists.exp_avg_sqs[i], parameter, "exp_avg_sqs", i);
  row.step = checked_step(lists.steps[i], parameter, i);
  row.wide_step = lists.steps[i].scalar_type() == at::kDouble;
  return row;
}

// Tells autograd, and whoever keeps copies, that a tensor was written.
void bump(const at::Tensor& tensor) {
  tensor.unsafeGetTensorImpl()->bump_version();
}

at::Tensor step(at::TensorList params, const OptionalTensors& grads, const OptionalTensors& grad_rows,
                at::TensorList exp_avgs, at::TensorList exp_avg_sqs, at::TensorList steps, at::TensorList anchors,
                at::TensorList packed, at::TensorList packed_t, at::TensorList row_flags, Doubles lr, Doubles beta1,
                Doubles beta2, Doubles eps, Doubles weight_decay, std::optional<double> max_grad_norm,
                double anchor_weight, const std::optional<at::Tensor>& schedule) {
  const Lists lists{params,   grads,     grad_rows, exp_avgs, exp_avg_sqs, steps, anchors,     packed,
                    packed_t, row_flags, lr,        beta1,    beta2,       eps,   weight_decay};
  check_lengths(lists);
  TORCH_CHECK_VALUE(!params.empty(), kOp, ": params is empty");
  TORCH_CHECK_VALUE(anchor_weight >= 0 && anchor_weight <= 1, kOp, ": anchor_weight is ", anchor_weight,
                    ", expected 0 <= anchor_weight <= 1");
  TORCH_CHECK_VALUE(!max_grad_norm.has_value() || *max_grad_norm > 0, kOp, ": max_grad_norm is ",
                    max_grad_norm.value_or(0), ", expected a positive number");
  const at::Device device = params[0].device();
  if (schedule.has_value()) check_like(*schedule, at::kDouble, {2}, device, kOp, "schedule");
  std::vector<AdamWTensor> rows;
  std::vector<AdamWNumbers> numbers;
  int64_t sums = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    rows.push_back(row_of(lists, i));
    numbers.push_back({lr[i], beta1[i], beta2[i], eps[i], weight_decay[i]});
    sums += adamw_chunks(rows.back());
  }
  const c10::cuda::CUDAGuard guard(device);
  const bool measured = max_grad_norm.has_value();
  const at::Tensor norm = empty(measured ? at::IntArrayRef{} : at::IntArrayRef{0}, at::kDouble, device);
  const at::Tensor partial_sums = empty({measured ? sums : 0}, at::kDouble, device);
  const AdamWStep args{schedule.has_value() ? schedule->const_data_ptr<double>() : nullptr, anchor_weight,
                       max_grad_norm.value_or(std::numeric_limits<double>::infinity()),
                       static_cast<double*>(data_or_null(partial_sums)), norm.data_ptr<double>()};
  adamw_step(args, rows, numbers, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  for (size_t i = 0; i < params.size(); ++i) {
    if (rows[i].anchor != nullptr) bump(anchors[i]);
    if (!rows[i].updated()) continue;
    for (const at::Tensor& written : {steps[i], params[i], exp_avgs[i], exp_avg_sqs[i]}) bump(written);
  }
  return norm;
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CUDA, m) {
  m.impl("adamw_step", step);
}

}  // namespace smartcs::cuda
