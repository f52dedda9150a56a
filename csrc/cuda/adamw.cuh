// One AdamW step of all parameters and their anchors on the GPU. Formulas: smartcs/ops/adamw.py, in the order of
// torch.optim.AdamW: scaled gradient, moments, decay, step; then anchor <- anchor + weight (theta - anchor) and the
// bf16 copy of theta.
//
// Three launches for any number of tensors:
//   1. squares: a block per chunk of 16384 numbers sums their gradient's squares in float64;
//   2. prepare: one block sums these in a fixed order (no atomics: the norm is the same in every run), writes the norm
//      and the clip scale, counts the steps and works out each tensor's scalars;
//   3. update: a block per chunk reads and writes every number once.
// Whatever changes from step to step is read from device memory: step counts, the numbers of the groups (lr), the clip
// scale and the anchor's weight. So the three launches can be captured in a CUDA graph once and replayed. If the norm
// is not finite, launch 3 and the step counts do nothing.
#pragma once

#include "common.cuh"

namespace smartcs::cuda {

// Of a parameter group.
struct AdamWNumbers {
  double lr, beta1, beta2, eps, weight_decay;
};

// One row of the table. float32 tensors, or float64 where `wide`.
struct AdamWTensor {
  void* theta;
  const void* grad;            // read if there is a step count
  void *exp_avg, *exp_avg_sq;  // written, likewise
  void* anchor;                // or null
  void* low;                   // bf16 copy of a float32 theta, written; or null
  void* step;                  // count of steps, float32 or, where `wide_step`, float64; null: no gradient, only the
                               // anchor moves
  int64_t size;
  int32_t group;  // whose numbers
  bool wide, wide_step;

  __host__ __device__ bool updated() const { return step != nullptr; }
};

// Numbers [index * kAdamWChunk, (index + 1) * kAdamWChunk) of a tensor, as far as there are.
struct AdamWChunk {
  int32_t tensor, index;
};

// Worked out once per step and tensor, in double, and rounded once.
struct AdamWScalars {
  double decay;         // 1 - lr weight_decay
  double step_size;     // lr / (1 - beta1^t)
  double inverse_root;  // 1 / sqrt(1 - beta2^t)
};

// All pointers are to device memory.
struct AdamWStep {
  int64_t tensor_count, chunk_count;
  const AdamWTensor* tensors;   // (tensor_count)
  const AdamWChunk* chunks;     // (chunk_count)
  const AdamWNumbers* numbers;  // (groups)
  const double* anchor_weight;  // (1)
  bool measured;                // whether the gradients' norm is wanted
  double max_grad_norm;         // infinite: only measured
  double* partial_sums;         // (chunk_count), scratch
  AdamWScalars* scalars;        // (tensor_count), scratch
  double* clip;                 // (2), written: the norm before clipping, and the scale, NaN if nothing is to change
};

constexpr int kAdamWThreads = 256;
constexpr int64_t kAdamWChunk = 16384;

// This block's chunk.
struct Span {
  AdamWTensor tensor;
  int64_t begin, end;

  __device__ explicit Span(const AdamWStep& args) {
    const AdamWChunk chunk = args.chunks[blockIdx.x];
    tensor = args.tensors[chunk.tensor];
    begin = chunk.index * kAdamWChunk;
    end = begin + kAdamWChunk < tensor.size ? begin + kAdamWChunk : tensor.size;
  }
};

template <class A>
__device__ __forceinline__ double squares(const Span& span) {
  double sum = 0;
  for (int64_t j = span.begin + threadIdx.x * kPack<A>; j < span.end; j += kAdamWThreads * kPack<A>) {
    A g[kPack<A>];
    load(static_cast<const A*>(span.tensor.grad), j, span.end, g);
    SMARTCS_UNROLL
    for (int i = 0; i < kPack<A>; ++i) sum += static_cast<double>(g[i]) * static_cast<double>(g[i]);
  }
  return sum;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) adamw_squares_kernel(AdamWStep args) {
  const Span span(args);
  double sum[1] = {0};
  if (span.tensor.updated()) sum[0] = span.tensor.wide ? squares<double>(span) : squares<float>(span);
  over_block<kThreads, 1, 0>(sum);
  if (threadIdx.x == 0) args.partial_sums[blockIdx.x] = sum[0];
}

__device__ __forceinline__ double counted(const AdamWTensor& tensor) {
  if (tensor.wide_step) return *static_cast<double*>(tensor.step) += 1;
  return *static_cast<float*>(tensor.step) += 1;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) adamw_prepare_kernel(AdamWStep args) {
  double scale = 1;
  if (args.measured) {
    double sum[1] = {0};
    for (int64_t chunk = threadIdx.x; chunk < args.chunk_count; chunk += kThreads) sum[0] += args.partial_sums[chunk];
    over_block<kThreads, 1, 0>(sum);
    const double norm = sqrt(sum[0]), wanted = args.max_grad_norm / (norm + 1e-6);
    scale = norm - norm != 0 ? NAN : wanted < 1 ? wanted : 1;
    if (threadIdx.x == 0) args.clip[0] = norm;
  }
  if (threadIdx.x == 0) args.clip[1] = scale;
  if (scale != scale) return;
  for (int64_t i = threadIdx.x; i < args.tensor_count; i += kThreads) {
    const AdamWTensor& tensor = args.tensors[i];
    if (!tensor.updated()) continue;
    const AdamWNumbers numbers = args.numbers[tensor.group];
    const double steps = counted(tensor);
    args.scalars[i] = {1 - numbers.lr * numbers.weight_decay, numbers.lr / (1 - pow(numbers.beta1, steps)),
                       1 / sqrt(1 - pow(numbers.beta2, steps))};
  }
}

// a + weight (theta - a), written so that weight 1 gives theta and equal numbers stay, both to the last bit.
template <class A>
__device__ __forceinline__ A followed(A a, A theta, A weight) {
  return weight < A(0.5) ? a + (theta - a) * weight : theta - (theta - a) * (A(1) - weight);
}

template <class A>
__device__ __forceinline__ void update(const AdamWStep& args, const Span& span, int32_t index) {
  const AdamWTensor& tensor = span.tensor;
  const bool updated = tensor.updated();
  const AdamWNumbers numbers = args.numbers[tensor.group];
  const AdamWScalars scalars = updated ? args.scalars[index] : AdamWScalars{1, 0, 1};
  const A grad_scale = static_cast<A>(args.clip[1]), decay = static_cast<A>(scalars.decay);
  const A new1 = static_cast<A>(1 - numbers.beta1), old2 = static_cast<A>(numbers.beta2);
  const A new2 = static_cast<A>(1 - numbers.beta2), step_size = static_cast<A>(scalars.step_size);
  const A inverse_root = static_cast<A>(scalars.inverse_root), eps = static_cast<A>(numbers.eps);
  const A weight = static_cast<A>(*args.anchor_weight);
  A *theta = static_cast<A*>(tensor.theta), *exp_avg = static_cast<A*>(tensor.exp_avg);
  A *exp_avg_sq = static_cast<A*>(tensor.exp_avg_sq), *anchor = static_cast<A*>(tensor.anchor);
  for (int64_t j = span.begin + threadIdx.x * kPack<A>; j < span.end; j += kAdamWThreads * kPack<A>) {
    A t[kPack<A>];
    load(theta, j, span.end, t);
    if (updated) {
      A g[kPack<A>], m[kPack<A>], v[kPack<A>];
      load(static_cast<const A*>(tensor.grad), j, span.end, g);
      load(exp_avg, j, span.end, m);
      load(exp_avg_sq, j, span.end, v);
      SMARTCS_UNROLL
      for (int i = 0; i < kPack<A>; ++i) {
        const A scaled = g[i] * grad_scale;
        m[i] += (scaled - m[i]) * new1;
        v[i] = v[i] * old2 + scaled * scaled * new2;
        t[i] = t[i] * decay - m[i] * step_size / (sqrt(v[i]) * inverse_root + eps);
      }
      store(exp_avg, j, span.end, m);
      store(exp_avg_sq, j, span.end, v);
      store(theta, j, span.end, t);
    }
    if (anchor != nullptr && weight != A(0)) {
      A a[kPack<A>];
      load(anchor, j, span.end, a);
      SMARTCS_UNROLL
      for (int i = 0; i < kPack<A>; ++i) a[i] = followed(a[i], t[i], weight);
      store(anchor, j, span.end, a);
    }
    if constexpr (sizeof(A) == sizeof(float)) {
      if (tensor.low != nullptr) store(static_cast<bf16*>(tensor.low), j, span.end, t);
    }
  }
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) adamw_update_kernel(AdamWStep args) {
  if (args.clip[1] != args.clip[1]) return;
  const Span span(args);
  const int32_t index = args.chunks[blockIdx.x].tensor;
  if (span.tensor.wide) {
    update<double>(args, span, index);
  } else {
    update<float>(args, span, index);
  }
}

inline void adamw_step(const AdamWStep& args, cudaStream_t stream) {
  if (args.measured) launch(adamw_squares_kernel<kAdamWThreads>, args.chunk_count, kAdamWThreads, stream, args);
  launch(adamw_prepare_kernel<kAdamWThreads>, 1, kAdamWThreads, stream, args);
  launch(adamw_update_kernel<kAdamWThreads>, args.chunk_count, kAdamWThreads, stream, args);
}

}  // namespace smartcs::cuda
