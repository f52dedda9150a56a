// One AdamW step of all parameters and their anchors on the GPU. Formulas: smartcs/ops/adamw.py, in the order of
// torch.optim.AdamW: scaled gradient, moments, decay, step; then the copy in bfloat16 that products read, and
// anchor <- anchor + weight (theta - anchor).
//
// Two kernels for any number of tensors, which are cut into chunks of 16384 numbers:
//   1. begin: each of up to 1024 blocks sums the squares of its chunks' gradients in float64; the steps are counted;
//   2. update: every block adds up these sums in a fixed order (no atomics: the norm is the same in every run), has one
//      thread work out the numbers of its chunk's tensor, and reads and writes every number of the chunk once.
// The table of tensors and the groups' numbers travel as kernel parameters: nothing is sent from the host, and a
// captured CUDA graph holds all that it needs. A kernel is launched again for what one table cannot hold. Whatever
// changes from step to step is read from device memory: step counts, the schedule, the gradients. If the norm is not
// finite, update does nothing but take the counted steps back.
#pragma once

#include <vector>

#include "common.cuh"

namespace smartcs::cuda {

// Of a parameter group.
struct AdamWNumbers {
  double lr, beta1, beta2, eps, weight_decay;

  bool operator==(const AdamWNumbers& other) const {
    return lr == other.lr && beta1 == other.beta1 && beta2 == other.beta2 && eps == other.eps &&
           weight_decay == other.weight_decay;
  }
};

// One row of the table. float32 tensors, or float64 where `wide`.
struct AdamWTensor {
  void* theta;
  const void* grad;            // read if there is a step count
  void *exp_avg, *exp_avg_sq;  // written, likewise
  void* anchor;                // or null
  bf16* low;                   // copy of theta, written where theta is float32 and is; or null
  void* step;                  // count of steps, float32 or, where `wide_step`, float64; null: no gradient, only the
                               // anchor moves
  int64_t size;
  int32_t first_chunk;  // of its launch's chunks; set by launches_of, and so is
  uint16_t group;       // whose numbers
  bool wide, wide_step;

  __host__ __device__ bool updated() const { return step != nullptr; }
};

// Worked out in double, and rounded once.
struct AdamWScalars {
  double decay;         // 1 - lr weight_decay
  double step_size;     // lr / (1 - beta1^t)
  double inverse_root;  // 1 / sqrt(1 - beta2^t)
};

// What all launches share. All pointers are to device memory.
struct AdamWStep {
  const double* schedule;  // (2): a factor of every lr, and the anchors' weight; or null: 1 and
  double anchor_weight;
  double max_grad_norm;  // infinite: only measured
  double* partial_sums;  // (adamw_sums of all launches), scratch; or null: the gradients' norm is not wanted
  double* norm;          // (1), written if it is: before clipping
};

constexpr int kAdamWThreads = 256;
constexpr int64_t kAdamWSums = 1024;  // most partial sums of a launch; a wave of blocks on a GPU of 132 multiprocessors
constexpr int64_t kAdamWChunk = 16384;
constexpr int kAdamWTensors = 432, kAdamWGroups = 32;

// What one launch takes of the tensors: its arguments.
template <int kTensors, int kGroups>
struct AdamWLaunch {
  AdamWStep step;
  int64_t first_sum, sum_count;  // its first among all launches' partial sums; theirs
  int32_t chunk_count, tensor_count, group_count;
  AdamWNumbers numbers[kGroups];
  AdamWTensor tensors[kTensors];
};
static_assert(sizeof(AdamWLaunch<kAdamWTensors, kAdamWGroups>) <= 32764, "what CUDA 12.1 and later pass to a kernel");

// One even where there are no numbers: steps are counted with a tensor's first.
inline int64_t adamw_chunks(const AdamWTensor& tensor) {
  return tensor.size > 0 ? ceil_div(tensor.size, kAdamWChunk) : 1;
}

// The blocks of a launch's first kernel, each of which leaves a partial sum.
template <int kSums, class Launch>
int64_t adamw_sums(const Launch& args) {
  return args.chunk_count < kSums ? args.chunk_count : kSums;
}

// The tensors, each with its numbers, in as many launches as it takes.
template <int kTensors, int kGroups, int kSums>
std::vector<AdamWLaunch<kTensors, kGroups>> launches_of(const AdamWStep& step, const std::vector<AdamWTensor>& tensors,
                                                        const std::vector<AdamWNumbers>& numbers) {
  std::vector<AdamWLaunch<kTensors, kGroups>> launches;
  for (size_t i = 0; i < tensors.size(); ++i) {
    int32_t group = 0;
    const auto find_group = [&] {
      const auto& last = launches.back();
      for (group = 0; group < last.group_count && !(last.numbers[group] == numbers[i]);) ++group;
      return group < kGroups;
    };
    const bool fits = !launches.empty() && launches.back().tensor_count < kTensors;
    if (!fits || (tensors[i].updated() && !find_group())) {
      launches.push_back({});
      launches.back().step = step;
      group = 0;
    }
    auto& last = launches.back();
    if (tensors[i].updated() && group == last.group_count) last.numbers[last.group_count++] = numbers[i];
    AdamWTensor& row = last.tensors[last.tensor_count++] = tensors[i];
    row.first_chunk = last.chunk_count;
    row.group = static_cast<uint16_t>(group);
    last.chunk_count += static_cast<int32_t>(adamw_chunks(row));
  }
  int64_t sums = 0;
  for (auto& args : launches) {
    args.first_sum = sums;
    sums += adamw_sums<kSums>(args);
  }
  for (auto& args : launches) args.sum_count = sums;
  return launches;
}

// A chunk of a launch's.
struct Span {
  AdamWTensor tensor;
  int64_t begin, end;

  template <class Launch>
  __device__ Span(const Launch& args, int32_t chunk) {
    // The last tensor that begins at this chunk or before.
    int32_t index = 0;
    for (int32_t beyond = args.tensor_count; beyond - index > 1;) {
      const int32_t middle = (index + beyond) / 2;
      (args.tensors[middle].first_chunk <= chunk ? index : beyond) = middle;
    }
    tensor = args.tensors[index];
    begin = (chunk - tensor.first_chunk) * kAdamWChunk;
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

// Adds to the step count of a tensor, at its first chunk.
__device__ __forceinline__ void count_step(const Span& span, int more) {
  if (threadIdx.x != 0 || span.begin != 0 || !span.tensor.updated()) return;
  if (span.tensor.wide_step) {
    *static_cast<double*>(span.tensor.step) += more;
  } else {
    *static_cast<float*>(span.tensor.step) += static_cast<float>(more);
  }
}

template <int kTensors, int kGroups>
__global__ void __launch_bounds__(kAdamWThreads)
    adamw_begin_kernel(const __grid_constant__ AdamWLaunch<kTensors, kGroups> args) {
  const bool measured = args.step.partial_sums != nullptr;
  double sum[1] = {0};
  for (auto chunk = static_cast<int32_t>(blockIdx.x); chunk < args.chunk_count; chunk += gridDim.x) {
    const Span span(args, chunk);
    count_step(span, 1);
    if (!measured || !span.tensor.updated()) continue;
    sum[0] += span.tensor.wide ? squares<double>(span) : squares<float>(span);
  }
  if (!measured) return;
  over_block<kAdamWThreads, 1, 0>(sum);
  if (threadIdx.x == 0) args.step.partial_sums[args.first_sum + blockIdx.x] = sum[0];
}

// What gradients are scaled by, the same to the bit in every block; NaN if nothing is to change.
__device__ __forceinline__ double clip_scale(const AdamWStep& step, int64_t sum_count) {
  if (step.partial_sums == nullptr) return 1;
  double sum[1] = {0};
  for (int64_t i = threadIdx.x; i < sum_count; i += kAdamWThreads) sum[0] += step.partial_sums[i];
  over_block<kAdamWThreads, 1, 0>(sum);
  const double norm = sqrt(sum[0]), wanted = step.max_grad_norm / (norm + 1e-6);
  if (blockIdx.x == 0 && threadIdx.x == 0) *step.norm = norm;  // every launch writes the same
  return norm - norm != 0 ? NAN : wanted < 1 ? wanted : 1;
}

__device__ __forceinline__ AdamWScalars scalars_of(const AdamWStep& step, const AdamWTensor& tensor,
                                                   const AdamWNumbers& numbers) {
  const double steps = tensor.wide_step ? *static_cast<const double*>(tensor.step)
                                        : static_cast<double>(*static_cast<const float*>(tensor.step));
  const double factor = step.schedule == nullptr ? 1 : step.schedule[0], lr = numbers.lr * factor;
  return {1 - lr * numbers.weight_decay, lr / (1 - pow(numbers.beta1, steps)), 1 / sqrt(1 - pow(numbers.beta2, steps))};
}

// a + weight (theta - a), written so that weight 1 gives theta and equal numbers stay, both to the last bit.
template <class A>
__device__ __forceinline__ A followed(A a, A theta, A weight) {
  return weight < A(0.5) ? a + (theta - a) * weight : theta - (theta - a) * (A(1) - weight);
}

template <class A>
__device__ __forceinline__ void update(const AdamWStep& step, const Span& span, const AdamWNumbers& numbers,
                                       const AdamWScalars& scalars, double scale) {
  const AdamWTensor& tensor = span.tensor;
  const bool updated = tensor.updated();
  const A grad_scale = static_cast<A>(scale), decay = static_cast<A>(scalars.decay);
  const A new1 = static_cast<A>(1 - numbers.beta1), old2 = static_cast<A>(numbers.beta2);
  const A new2 = static_cast<A>(1 - numbers.beta2), step_size = static_cast<A>(scalars.step_size);
  const A inverse_root = static_cast<A>(scalars.inverse_root), eps = static_cast<A>(numbers.eps);
  const A weight = static_cast<A>(step.schedule == nullptr ? step.anchor_weight : step.schedule[1]);
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
      if constexpr (sizeof(A) == sizeof(float)) {
        if (tensor.low != nullptr) store(tensor.low, j, span.end, t);
      }
    }
    if (anchor != nullptr && weight != A(0)) {
      A a[kPack<A>];
      load(anchor, j, span.end, a);
      SMARTCS_UNROLL
      for (int i = 0; i < kPack<A>; ++i) a[i] = followed(a[i], t[i], weight);
      store(anchor, j, span.end, a);
    }
  }
}

template <int kTensors, int kGroups>
__global__ void __launch_bounds__(kAdamWThreads)
    adamw_update_kernel(const __grid_constant__ AdamWLaunch<kTensors, kGroups> args) {
  const AdamWStep& step = args.step;
  const double scale = clip_scale(step, args.sum_count);
  const Span span(args, static_cast<int32_t>(blockIdx.x));
  if (scale != scale) return count_step(span, -1);
  const AdamWNumbers& numbers = args.numbers[span.tensor.group];
  SMARTCS_SHARED(AdamWScalars, scalars, 1);
  if (threadIdx.x == 0 && span.tensor.updated()) scalars[0] = scalars_of(step, span.tensor, numbers);
  __syncthreads();  // the scalars are written
  const AdamWScalars own = span.tensor.updated() ? scalars[0] : AdamWScalars{1, 0, 1};
  if (span.tensor.wide) {
    update<double>(step, span, numbers, own, scale);
  } else {
    update<float>(step, span, numbers, own, scale);
  }
}

// numbers: one for every tensor.
template <int kTensors = kAdamWTensors, int kGroups = kAdamWGroups, int kSums = kAdamWSums>
void adamw_step(const AdamWStep& step, const std::vector<AdamWTensor>& tensors,
                const std::vector<AdamWNumbers>& numbers, cudaStream_t stream) {
  const auto launches = launches_of<kTensors, kGroups, kSums>(step, tensors, numbers);
  for (const auto& args : launches) {
    launch(adamw_begin_kernel<kTensors, kGroups>, adamw_sums<kSums>(args), kAdamWThreads, stream, args);
  }
  for (const auto& args : launches) {
    launch(adamw_update_kernel<kTensors, kGroups>, args.chunk_count, kAdamWThreads, stream, args);
  }
}

}  // namespace smartcs::cuda
