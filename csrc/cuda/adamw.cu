// adamw on the GPU: checks, the table of tensors, launch. Arithmetic: adamw.cuh.
//
// The table lives on the device and is sent again only when it changes; so are the groups' numbers and the anchor's
// weight, which the kernels read there. A step captured in a CUDA graph must therefore follow one with the same tensors
// and numbers: a copy from the host is refused during capture. `packed` is here a plain bf16 copy in the parameter's
// shape, as cuBLAS reads both it and its transpose; sparse gradients and row flags are the CPU's.
#include "adamw.cuh"

#include <ATen/core/List.h>

#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "launch.h"

namespace smartcs::cuda {
namespace {

constexpr const char* kOp = "adamw";

using OptionalTensors = c10::List<std::optional<at::Tensor>>;
using Doubles = at::ArrayRef<double>;

std::string name_of(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

// The tensor at i; none where the list is empty or holds an empty tensor in its place.
const at::Tensor* at_index(at::TensorList tensors, size_t i) {
  return tensors.empty() || tensors[i].numel() == 0 ? nullptr : &tensors[i];
}

void* checked(const at::Tensor& tensor, at::ScalarType dtype, const at::Tensor& parameter, const char* list, size_t i) {
  check_like(tensor, dtype, parameter.sizes(), parameter.device(), kOp, name_of(list, i).c_str());
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
  TORCH_CHECK(at_index(lists.row_flags, i) == nullptr && at_index(lists.packed_t, i) == nullptr, kOp, ": ",
              name_of("row_flags", i), " or ", name_of("packed_t", i), " is given, but they are the CPU's");
  AdamWTensor row{};
  row.theta = data_or_null(parameter);
  row.size = parameter.numel();
  row.wide = dtype == at::kDouble;
  if (const at::Tensor* anchor = at_index(lists.anchors, i)) {
    row.anchor = checked(*anchor, dtype, parameter, "anchors", i);
  }
  if (const at::Tensor* low = at_index(lists.packed, i)) {
    TORCH_CHECK(!row.wide, kOp, ": ", name_of("packed", i), " is given for a float64 parameter, expected float32");
    row.low = checked(*low, at::kBFloat16, parameter, "packed", i);
  }
  const std::optional<at::Tensor> grad = lists.grads[i];
  if (!grad.has_value()) return row;
  row.grad = checked(*grad, dtype, parameter, "grads", i);
  row.exp_avg = checked(lists.exp_avgs[i], dtype, parameter, "exp_avgs", i);
  row.exp_avg_sq = checked(lists.exp_avg_sqs[i], dtype, parameter, "exp_avg_sqs", i);
  const at::Tensor& step = lists.steps[i];
  row.wide_step = step.scalar_type() == at::kDouble;
  check_like(step, row.wide_step ? at::kDouble : at::kFloat, {}, parameter.device(), kOp, name_of("steps", i).c_str());
  row.step = step.data_ptr();
  return row;
}

// Bytes that the device already has, or sends them: pinned, in stream order, without waiting.
class Sent {
 public:
  const void* operator()(const std::vector<char>& bytes, at::Device device, cudaStream_t stream) {
    if (bytes == bytes_ && device_.defined() && stream == stream_) return device_.const_data_ptr();
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    C10_CUDA_CHECK(cudaStreamIsCapturing(stream, &capture));
    TORCH_CHECK(capture == cudaStreamCaptureStatusNone, kOp,
                ": captured in a CUDA graph with other tensors or numbers than in the step before; take one such step "
                "before the capture");
    const int64_t size = static_cast<int64_t>(bytes.size());
    at::Tensor host = at::empty({size}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
    std::memcpy(host.data_ptr(), bytes.data(), bytes.size());
    device_ = empty({size}, at::kByte, device);
    device_.copy_(host, /*non_blocking=*/true);
    bytes_ = bytes;
    stream_ = stream;
    return device_.const_data_ptr();
  }

 private:
  std::vector<char> bytes_;
  at::Tensor device_;
  cudaStream_t stream_ = nullptr;
};

template <class T>
std::vector<char> bytes_of(const std::vector<T>& rows) {
  const char* begin = reinterpret_cast<const char*>(rows.data());
  return {begin, begin + rows.size() * sizeof(T)};
}

// What the last step on a device sent there. Never destroyed: the driver may be gone before the statics of a library.
struct Tables {
  std::mutex mutex;
  Sent tensors, chunks, numbers, weight;
};
Tables& tables_of(at::Device device) {
  static std::mutex mutex;
  static auto* all = new std::map<int, Tables>();
  const std::lock_guard<std::mutex> lock(mutex);
  return (*all)[device.index()];
}

// Tells autograd, and whoever keeps copies, that a tensor was written.
void bump(const at::Tensor& tensor) {
  tensor.unsafeGetTensorImpl()->bump_version();
}

at::Tensor step(at::TensorList params, const OptionalTensors& grads, const OptionalTensors& grad_rows,
                at::TensorList exp_avgs, at::TensorList exp_avg_sqs, at::TensorList steps, at::TensorList anchors,
                at::TensorList packed, at::TensorList packed_t, at::TensorList row_flags, Doubles lr, Doubles beta1,
                Doubles beta2, Doubles eps, Doubles weight_decay, std::optional<double> max_grad_norm,
                double anchor_weight) {
  const Lists lists{params,   grads,     grad_rows, exp_avgs, exp_avg_sqs, steps, anchors,     packed,
                    packed_t, row_flags, lr,        beta1,    beta2,       eps,   weight_decay};
  check_lengths(lists);
  TORCH_CHECK_VALUE(!params.empty(), kOp, ": params is empty");
  TORCH_CHECK_VALUE(anchor_weight >= 0 && anchor_weight <= 1, kOp, ": anchor_weight is ", anchor_weight,
                    ", expected 0 <= anchor_weight <= 1");
  TORCH_CHECK_VALUE(!max_grad_norm.has_value() || *max_grad_norm > 0, kOp, ": max_grad_norm is ",
                    max_grad_norm.value_or(0), ", expected a positive number");
  std::vector<AdamWTensor> rows;
  std::vector<AdamWChunk> chunks;
  std::vector<AdamWNumbers> numbers;
  for (size_t i = 0; i < params.size(); ++i) {
    AdamWTensor row = row_of(lists, i);
    row.group = static_cast<int32_t>(i);
    const int32_t tensor = static_cast<int32_t>(i);
    for (int32_t index = 0; index * kAdamWChunk < row.size; ++index) chunks.push_back({tensor, index});
    numbers.push_back({lr[i], beta1[i], beta2[i], eps[i], weight_decay[i]});
    rows.push_back(row);
  }
  const at::Device device = params[0].device();
  const c10::cuda::CUDAGuard guard(device);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t tensor_count = static_cast<int64_t>(rows.size()), chunk_count = static_cast<int64_t>(chunks.size());
  at::Tensor partial_sums = empty({chunk_count}, at::kDouble, device);
  at::Tensor scalars = empty({tensor_count, 3}, at::kDouble, device), clip = empty({2}, at::kDouble, device);
  Tables& tables = tables_of(device);
  const std::lock_guard<std::mutex> lock(tables.mutex);
  const AdamWStep args{
      tensor_count,
      chunk_count,
      static_cast<const AdamWTensor*>(tables.tensors(bytes_of(rows), device, stream)),
      static_cast<const AdamWChunk*>(tables.chunks(bytes_of(chunks), device, stream)),
      static_cast<const AdamWNumbers*>(tables.numbers(bytes_of(numbers), device, stream)),
      static_cast<const double*>(tables.weight(bytes_of(std::vector<double>{anchor_weight}), device, stream)),
      max_grad_norm.has_value(),
      max_grad_norm.value_or(std::numeric_limits<double>::infinity()),
      partial_sums.data_ptr<double>(),
      static_cast<AdamWScalars*>(scalars.data_ptr()),
      clip.data_ptr<double>()};
  adamw_step(args, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  for (size_t i = 0; i < params.size(); ++i) {
    if (rows[i].anchor != nullptr) bump(anchors[i]);
    if (!rows[i].updated()) continue;
    for (const at::Tensor& written : {steps[i], params[i], exp_avgs[i], exp_avg_sqs[i]}) bump(written);
  }
  return max_grad_norm.has_value() ? clip.select(0, 0) : empty({0}, at::kDouble, device);
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CUDA, m) {
  m.impl("adamw_step", step);
}

}  // namespace smartcs::cuda
