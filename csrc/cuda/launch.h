// What the torch-facing half of every CUDA op shares: argument checks, number types, device and stream.
//
// No launch waits for the device or reads from it, so that all of them can be captured in a CUDA graph.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <optional>

#include "common.cuh"

namespace smartcs::cuda {

inline void check_cuda_contiguous(const at::Tensor& tensor, const char* op, const char* name) {
  TORCH_CHECK(tensor.device().is_cuda(), op, ": ", name, " is on ", tensor.device(), ", expected a CUDA tensor");
  TORCH_CHECK(tensor.layout() == at::kStrided && tensor.is_contiguous(), op, ": ", name, " must be contiguous");
}

inline void check_like(const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef shape, at::Device device,
                       const char* op, const char* name) {
  check_cuda_contiguous(tensor, op, name);
  TORCH_CHECK(tensor.device() == device, op, ": ", name, " is on ", tensor.device(), ", expected ", device);
  TORCH_CHECK(tensor.scalar_type() == dtype, op, ": ", name, " has dtype ", tensor.scalar_type(), ", expected ", dtype);
  TORCH_CHECK(tensor.sizes() == shape, op, ": ", name, " has shape ", tensor.sizes(), ", expected ", shape);
}

// What the kernels add to the numbers of a random stream and of its rows, or null.
inline const int64_t* checked_offset(const std::optional<at::Tensor>& offset, at::Device device, const char* op) {
  if (!offset.has_value()) return nullptr;
  check_like(*offset, at::kLong, {2}, device, op, "counter_offset");
  return offset->const_data_ptr<int64_t>();
}

// Statistics and sums: float64 for float64 data, else float32.
inline at::ScalarType compute_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline at::Tensor empty(at::IntArrayRef shape, at::ScalarType dtype, at::Device device) {
  return at::empty(shape, at::TensorOptions().dtype(dtype).device(device));
}

inline void* data_or_null(const at::Tensor& tensor) {
  return tensor.numel() > 0 ? tensor.data_ptr() : nullptr;
}

// Calls run(S(), stream) with the number type of `like`, on its device and that device's current stream.
template <class F>
void launch_for(const at::Tensor& like, const char* op, F run) {
  const c10::cuda::CUDAGuard guard(like.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  switch (like.scalar_type()) {
    case at::kFloat:
      run(float(), stream);
      break;
    case at::kDouble:
      run(double(), stream);
      break;
    case at::kBFloat16:
      run(bf16(), stream);
      break;
    case at::kHalf:
      run(half(), stream);
      break;
    default:
      TORCH_CHECK(false, op, ": dtype ", like.scalar_type(),
                  " has no CUDA kernel; use float32, float64, bfloat16 or float16");
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace smartcs::cuda
