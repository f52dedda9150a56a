// What the torch-facing half of every CPU op shares: argument checks, element types, dropout, scratch memory.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <optional>

#include "isa.h"

namespace smartcs {

// The smartcs.ops front doors name arguments for users; these checks keep a direct call of the raw op from
// touching memory it does not own.
inline void check_cpu_contiguous(const at::Tensor& tensor, const char* op, const char* name) {
  TORCH_CHECK(tensor.device().is_cpu(), op, ": ", name, " is on ", tensor.device(), ", expected a CPU tensor");
  TORCH_CHECK(tensor.layout() == at::kStrided && tensor.is_contiguous(), op, ": ", name, " must be contiguous");
  const int64_t end = tensor.storage_offset() + tensor.numel();
  TORCH_CHECK(tensor.storage().nbytes() >= static_cast<size_t>(end) * tensor.element_size(), op, ": ", name,
              " has no memory behind it, its storage was freed");
}

inline void check_like(const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef shape, const char* op,
                       const char* name) {
  check_cpu_contiguous(tensor, op, name);
  TORCH_CHECK(tensor.scalar_type() == dtype, op, ": ", name, " has dtype ", tensor.scalar_type(), ", expected ", dtype);
  TORCH_CHECK(tensor.sizes() == shape, op, ": ", name, " has shape ", tensor.sizes(), ", expected ", shape);
}

// Lengths are data: they are checked here, where reading them is free, so that no kernel indexes outside its rows.
// Returns the B + 1 offsets of the sentences that the rows of a tensor called `like_name` belong to.
inline const int32_t* checked_cu_seqlens(const at::Tensor& cu_seqlens, int64_t rows, const char* op,
                                         const char* like_name) {
  check_cpu_contiguous(cu_seqlens, op, "cu_seqlens");
  TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.numel() >= 1 && cu_seqlens.scalar_type() == at::kInt, op,
              ": cu_seqlens is ", cu_seqlens.scalar_type(), " of shape ", cu_seqlens.sizes(),
              ", expected int32 of shape (B + 1,)");
  const int32_t* cu = cu_seqlens.const_data_ptr<int32_t>();
  const int64_t batch = cu_seqlens.numel() - 1;
  TORCH_CHECK_VALUE(cu[0] == 0, op, ": cu_seqlens starts at ", cu[0], ", expected 0");
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK_VALUE(cu[b + 1] >= cu[b], op, ": cu_seqlens decreases at index ", b + 1);
  }
  TORCH_CHECK_VALUE(cu[batch] == rows, op, ": cu_seqlens ends at ", cu[batch], ", but ", like_name, " has ", rows,
                    " tokens");
  return cu;
}

inline Storage storage_of(const at::Tensor& tensor, const char* op) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return kFloat32;
    case at::kDouble:
      return kFloat64;
    case at::kBFloat16:
      return kBFloat16;
    default:
      TORCH_CHECK(false, op, ": dtype ", tensor.scalar_type(), " has no CPU kernel; use float32, float64 or bfloat16");
  }
}

// Statistics, log-sum-exps and partial sums: float64 for float64 data, else float32.
inline at::ScalarType compute_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline at::Tensor empty(at::IntArrayRef shape, at::ScalarType dtype) {
  return at::empty(shape, at::TensorOptions().dtype(dtype));
}

inline void* data_or_null(const at::Tensor& tensor) {
  return tensor.numel() > 0 ? tensor.data_ptr() : nullptr;
}

inline const void* data_or_null(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

// Where the random numbers of an op are counted from: its stream, modulo 2^64, and its first row, modulo 2^32.
struct Counters {
  uint64_t stream;
  uint32_t row;
};

inline Counters counted(int64_t stream, const std::optional<at::Tensor>& offset, const char* op) {
  if (!offset.has_value()) return {static_cast<uint64_t>(stream), 0};
  check_like(*offset, at::kLong, {2}, op, "counter_offset");
  const int64_t* counters = offset->const_data_ptr<int64_t>();
  return {static_cast<uint64_t>(stream) + static_cast<uint64_t>(counters[0]), static_cast<uint32_t>(counters[1])};
}

inline Dropout make_dropout(double p, int64_t seed, int64_t stream, const std::optional<at::Tensor>& counter_offset,
                            const char* op) {
  TORCH_CHECK(p >= 0 && p < 1, op, ": dropout_p is ", p, ", expected 0 <= dropout_p < 1");
  Dropout dropout;
  // At least 1, so that a tiny p is still dropout: active() and p > 0 must agree.
  const double threshold = std::fmin(std::fmax(std::nearbyint(p * 4294967296.0), 1.0), 4294967295.0);
  dropout.threshold = p > 0 ? static_cast<uint32_t>(threshold) : 0;
  dropout.keep_scale = 1.0 / (1.0 - p);
  dropout.seed = static_cast<uint64_t>(seed);
  const Counters counters = counted(stream, counter_offset, op);
  dropout.stream = counters.stream;
  dropout.first_row = counters.row;
  return dropout;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Uninitialised memory for one thread's work, aligned for the widest vectors.
inline std::unique_ptr<void, Free> scratch(int64_t bytes) {
  void* p = std::aligned_alloc(64, static_cast<size_t>((bytes + 64) / 64 * 64));
  TORCH_CHECK(p != nullptr, "smartcs: out of memory for ", bytes, " bytes of scratch");
  return std::unique_ptr<void, Free>(p);
}

// One row of dropout factors, as fill_keep writes it.
inline std::unique_ptr<void, Free> keep_row(int64_t columns) {
  return scratch((columns + 63) / 64 * 64 * static_cast<int64_t>(sizeof(double)));
}

// Enough elements per task that starting a thread costs less than it saves.
inline int64_t grain(int64_t elements_per_item) {
  constexpr int64_t kElements = 16384;
  return elements_per_item >= kElements ? 1 : kElements / (elements_per_item > 0 ? elements_per_item : 1);
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// total (C) = sum of partials (count, C) in order, columns split among threads.
template <class Kernel>
at::Tensor summed(Kernel kernel, const void* partials, int64_t count, int64_t columns, at::ScalarType dtype) {
  at::Tensor total = empty({columns}, dtype);
  if (columns == 0) return total;  // of no columns there may be more rows than can be counted through
  at::parallel_for(0, ceil_div(columns, 64), grain(64 * count), [&](int64_t begin, int64_t end) {
    kernel(partials, count, columns, total.data_ptr(), begin * 64, std::min(end * 64, columns));
  });
  return total;
}

}  // namespace smartcs
