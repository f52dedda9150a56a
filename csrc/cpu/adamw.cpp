// adamw on the CPU: checks and scalars. The pass over memory: adamw_pass.h.
#include <ATen/core/List.h>
#include <ATen/ops/scalar_tensor.h>

#include <string>

#include "adamw_pass.h"

namespace smartcs {
namespace {

using adamw::Task;

constexpr const char* kOp = "adamw";

using OptionalTensors = c10::List<std::optional<at::Tensor>>;
using Doubles = at::ArrayRef<double>;

std::string name_of(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

// tensors[i], null where the list is empty or holds an empty tensor in its place; checked to look like the parameter.
void* checked_like(at::TensorList tensors, const char* list, size_t i, const at::Tensor& parameter) {
  if (tensors.empty() || tensors[i].numel() == 0) return nullptr;
  check_like(tensors[i], parameter.scalar_type(), parameter.sizes(), kOp, name_of(list, i).c_str());
  return tensors[i].data_ptr();
}

uint16_t* checked_packed(at::TensorList tensors, const char* list, size_t i, const at::Tensor& parameter, bool turned) {
  if (tensors.empty() || tensors[i].numel() == 0) return nullptr;
  TORCH_CHECK(parameter.dim() == 2 && parameter.scalar_type() == at::kFloat, kOp, ": ", name_of(list, i),
              " is given for a parameter of dtype ", parameter.scalar_type(), " and shape ", parameter.sizes(),
              ", expected a float32 matrix");
  const int64_t outputs = parameter.size(0), inputs = parameter.size(1);
  const int64_t elements = turned ? packed_elements(outputs, inputs) : packed_elements(inputs, outputs);
  check_like(tensors[i], at::kBFloat16, {elements}, kOp, name_of(list, i).c_str());
  return static_cast<uint16_t*>(tensors[i].data_ptr());
}

void check_sparse(const at::Tensor& values, const at::Tensor& rows, const at::Tensor& parameter, size_t i) {
  TORCH_CHECK(parameter.dim() == 2, kOp, ": ", name_of("grad_rows", i), " is given for a parameter of shape ",
              parameter.sizes(), ", expected a table (rows, C)");
  TORCH_CHECK(rows.dim() == 1, kOp, ": ", name_of("grad_rows", i), " has shape ", rows.sizes(), ", expected (R,)");
  check_like(rows, at::kLong, rows.sizes(), kOp, name_of("grad_rows", i).c_str());
  check_like(values, parameter.scalar_type(), {rows.size(0), parameter.size(1)}, kOp, name_of("grads", i).c_str());
  const int64_t* row = rows.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < rows.size(0); ++r) {
    TORCH_CHECK_INDEX(row[r] >= 0 && row[r] < parameter.size(0), kOp, ": ", name_of("grad_rows", i), "[", r, "] is ",
                      row[r], ", but its table has ", parameter.size(0), " rows");
  }
}

void check_step(const at::Tensor& step, size_t i) {
  check_cpu_contiguous(step, kOp, name_of("steps", i).c_str());
  TORCH_CHECK(step.dim() == 0 && (step.scalar_type() == at::kFloat || step.scalar_type() == at::kDouble), kOp, ": ",
              name_of("steps", i), " is ", step.scalar_type(), " of shape ", step.sizes(),
              ", expected one number in float32 or float64");
}

double steps_taken(const at::Tensor& step) {
  return step.scalar_type() == at::kDouble ? *step.const_data_ptr<double>() : *step.const_data_ptr<float>();
}

// Tells autograd, and whoever keeps copies, that a tensor was written.
void bump(const at::Tensor& tensor) {
  tensor.unsafeGetTensorImpl()->bump_version();
}

void count_step(const at::Tensor& step) {
  step.scalar_type() == at::kDouble ? *step.data_ptr<double>() += 1 : *step.data_ptr<float>() += 1;
}

// The scalars of one tensor, from its step count after this step.
void set_scalars(AdamWTensor& tensor, double steps, double lr, double beta1, double beta2, double eps, double decay) {
  tensor.decay = 1 - lr * decay;
  tensor.beta1 = beta1;
  tensor.beta2 = beta2;
  tensor.step_size = lr / (1 - std::pow(beta1, steps));
  tensor.inverse_root = 1 / std::sqrt(1 - std::pow(beta2, steps));
  tensor.eps = eps;
}

// The arguments of the op that there is one of for every parameter; lists of extras may be empty.
struct Lists {
  at::TensorList params;
  const OptionalTensors &grads, &grad_rows;
  at::TensorList exp_avgs, exp_avg_sqs, steps, anchors, packed, packed_t, row_flags;
  Doubles lr, beta1, beta2, eps, weight_decay;

  std::optional<at::Tensor> rows(size_t i) const { return grad_rows.empty() ? std::nullopt : grad_rows[i]; }
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

// Checks everything about one parameter and writes nothing.
Task task_of(const Lists& lists, size_t i, double anchor_weight) {
  const at::Tensor& parameter = lists.params[i];
  const at::ScalarType dtype = parameter.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, kOp, ": ", name_of("params", i), " has dtype ", dtype,
                   ", expected float32 or float64");
  check_cpu_contiguous(parameter, kOp, name_of("params", i).c_str());
  const std::optional<at::Tensor> grad = lists.grads[i], rows = lists.rows(i);
  Task task;
  task.storage = storage_of(parameter, kOp);
  task.numel = parameter.numel();
  task.columns = parameter.dim() == 2 ? parameter.size(1) : task.numel;
  task.tensor.theta = data_or_null(parameter);
  task.tensor.anchor_weight = anchor_weight;
  if (void* anchor = checked_like(lists.anchors, "anchors", i, parameter); anchor_weight > 0) {
    task.tensor.anchor = anchor;
  }
  if (!lists.row_flags.empty() && lists.row_flags[i].numel() > 0) {
    TORCH_CHECK(parameter.dim() == 2 && (rows.has_value() || !grad.has_value()), kOp, ": ", name_of("row_flags", i),
                " is given, expected only for a table (rows, C) with a sparse gradient or none");
    check_like(lists.row_flags[i], at::kByte, {parameter.size(0)}, kOp, name_of("row_flags", i).c_str());
    task.row_flags = lists.row_flags[i].data_ptr<uint8_t>();
  }
  uint16_t* packed = checked_packed(lists.packed, "packed", i, parameter, false);
  uint16_t* packed_t = checked_packed(lists.packed_t, "packed_t", i, parameter, true);
  if (grad.has_value()) {
    rows.has_value() ? check_sparse(*grad, *rows, parameter, i)
                     : check_like(*grad, dtype, parameter.sizes(), kOp, name_of("grads", i).c_str());
    TORCH_CHECK(!rows.has_value() || task.row_flags != nullptr || parameter.size(0) == 0, kOp, ": ",
                name_of("row_flags", i), " is missing, expected one number per row for a sparse gradient");
    check_like(lists.exp_avgs[i], dtype, parameter.sizes(), kOp, name_of("exp_avgs", i).c_str());
    check_like(lists.exp_avg_sqs[i], dtype, parameter.sizes(), kOp, name_of("exp_avg_sqs", i).c_str());
    check_step(lists.steps[i], i);
    task.packed = packed;
    task.packed_t = packed_t;
    task.tensor.exp_avg = data_or_null(lists.exp_avgs[i]);
    task.tensor.exp_avg_sq = data_or_null(lists.exp_avg_sqs[i]);
    if (!rows.has_value()) task.grad = grad->const_data_ptr();
  }
  TORCH_CHECK(!task.packs() || task.row_flags == nullptr, kOp, ": ", name_of("packed", i),
              " is given for a table with row_flags, expected one of the two");
  return task;
}

struct Schedule {
  double lr_factor, anchor_weight;
};

// What `schedule` holds, or without one the weight given.
Schedule checked_schedule(const std::optional<at::Tensor>& schedule, double anchor_weight) {
  Schedule found{1, anchor_weight};
  if (schedule.has_value()) {
    check_like(*schedule, at::kDouble, {2}, kOp, "schedule");
    const double* numbers = schedule->const_data_ptr<double>();
    found = {numbers[0], numbers[1]};
  }
  TORCH_CHECK_VALUE(found.anchor_weight >= 0 && found.anchor_weight <= 1, kOp, ": anchor_weight is ",
                    found.anchor_weight, ", expected 0 <= anchor_weight <= 1");
  return found;
}

at::Tensor adamw_step(at::TensorList params, const OptionalTensors& grads, const OptionalTensors& grad_rows,
                      at::TensorList exp_avgs, at::TensorList exp_avg_sqs, at::TensorList steps, at::TensorList anchors,
                      at::TensorList packed, at::TensorList packed_t, at::TensorList row_flags, Doubles lr,
                      Doubles beta1, Doubles beta2, Doubles eps, Doubles weight_decay,
                      std::optional<double> max_grad_norm, double anchor_weight,
                      const std::optional<at::Tensor>& schedule) {
  const Lists lists{params,   grads,     grad_rows, exp_avgs, exp_avg_sqs, steps, anchors,     packed,
                    packed_t, row_flags, lr,        beta1,    beta2,       eps,   weight_decay};
  check_lengths(lists);
  const Schedule now = checked_schedule(schedule, anchor_weight);
  TORCH_CHECK_VALUE(!max_grad_norm.has_value() || *max_grad_norm > 0, kOp, ": max_grad_norm is ",
                    max_grad_norm.value_or(0), ", expected a positive number");
  std::vector<Task> tasks;
  tasks.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) tasks.push_back(task_of(lists, i, now.anchor_weight));
  // Everything is checked. Gradients are read before anything is written.
  for (size_t i = 0; i < tasks.size(); ++i) {
    const std::optional<at::Tensor> values = grads[i], rows = lists.rows(i);
    if (values.has_value() && rows.has_value() && tasks[i].row_flags != nullptr) {
      tasks[i].sparse = adamw::coalesced(tasks[i], *values, *rows, params[i].size(0));
    }
  }
  at::Tensor norm = empty({0}, at::kDouble);
  double grad_scale = 1;
  if (max_grad_norm.has_value()) {
    const double value = adamw::global_norm(tasks);
    norm = at::scalar_tensor(value, at::TensorOptions().dtype(at::kDouble));
    if (!std::isfinite(value)) return norm;
    grad_scale = std::min(1.0, *max_grad_norm / (value + 1e-6));
  }
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (tasks[i].tensor.anchor != nullptr) bump(anchors[i]);
    if (!std::optional<at::Tensor>(grads[i]).has_value()) continue;
    count_step(steps[i]);
    const double rate = lr[i] * now.lr_factor;
    set_scalars(tasks[i].tensor, steps_taken(steps[i]), rate, beta1[i], beta2[i], eps[i], weight_decay[i]);
    tasks[i].tensor.grad_scale = grad_scale;
    for (const at::Tensor& written : {steps[i], params[i], exp_avgs[i], exp_avg_sqs[i]}) bump(written);
  }
  adamw::step_all(tasks);
  return norm;
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CPU, m) {
  m.impl("adamw_step", adamw_step);
}

}  // namespace smartcs
