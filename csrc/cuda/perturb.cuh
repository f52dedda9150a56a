// SMART's noise and one step of its adversarial search on the GPU. Formulas: smartcs/ops/perturb.py. With W = 4 columns
// per thread for the noise, and for a step, where a group is a row or all the rows of a sentence,
//
//   w = v + step_size (g / divisor),  divisor = max |g| for "projected", else 1
//   v' = w / (||w|| + norm_eps), sign(w) | the point of the ball nearest to w | w / ||g||
//   statistics = cosine of v' and g, ||v'||, 1 where all is finite (else 0, and v' = 0)
//
// A group is one block's: its rows lie side by side. Up to 2 packs of 16 bytes per thread are read once and stay in
// registers (2048 float32: every row there is); longer sentences are read again from the caches. Sums are in float64,
// as the square of a gradient of 1e-25 is no float32; there are no atomics, and a group's bits depend on its numbers
// alone, whether it is a row or a sentence.
#pragma once

#include "philox.cuh"

namespace smartcs::cuda {

struct PerturbNoise {
  int64_t rows, columns;
  double std;
  uint64_t seed, stream;
  const int64_t* counter_offset;  // (2), or null
  void* noise;                    // (N, C), written
};

enum class Update : int { mtdnn, projected, paper };
enum class Norm : int { inf, two, one };

struct PerturbStep {
  int64_t rows, groups, columns;
  const int32_t* cu_seqlens;  // (G + 1), or null: every row is a group
  Update update;
  Norm norm;
  double step_size, radius, norm_eps;
  const void *v, *g;  // (N, C)
  void* moved;        // (N, C), written
  void* statistics;   // (G, 3), compute type, written
};

constexpr int kNoiseThreads = 128, kNoiseColumns = 4;
constexpr int kStepThreads = 256, kStepHold = 2;

// Two normal numbers from two words; u2 in turns, so that no angle is rounded.
__device__ __forceinline__ void box_muller(uint32_t even, uint32_t odd, float std, float* cosine, float* sine) {
  const float u1 = static_cast<float>((even >> 8) + 1) * 0x1p-24f, turns = static_cast<float>(odd >> 8) * 0x1p-24f;
  const float r = sqrt(-2.0f * log(u1));
  float s, c;
  sincospif(2.0f * turns, &s, &c);
  *cosine = r * c * std;
  *sine = r * s * std;
}
// As the reference writes it: it rounds the angle, and float64 is held to it.
__device__ __forceinline__ void box_muller(uint32_t even, uint32_t odd, double std, double* cosine, double* sine) {
  constexpr double kTurn = 6.283185307179586 * 0x1p-24;
  const double r = sqrt(-2.0 * log(((even >> 8) + 1) * 0x1p-24));
  double s, c;
  sincos((odd >> 8) * kTurn, &s, &c);
  *cosine = r * c * std;
  *sine = r * s * std;
}

// Fewer than 2^32, which perturb.cu sees to: they draw 2^36 numbers.
__host__ __device__ inline int64_t noise_threads(int64_t rows, int64_t columns) {
  return rows * ceil_div(columns, 64) * (16 / kNoiseColumns);
}

// A thread draws 4 counters of a row: 4 neighbouring columns in each of 4 places.
template <class S>
__global__ void __launch_bounds__(kNoiseThreads) perturb_noise_kernel(PerturbNoise args) {
  using A = Compute<S>;
  const uint32_t per_row = static_cast<uint32_t>(noise_threads(1, args.columns));
  const uint32_t thread = blockIdx.x * kNoiseThreads + threadIdx.x;
  const uint32_t row = thread / per_row, number = thread % per_row * kNoiseColumns;
  if (row >= args.rows) return;
  const A std = static_cast<A>(args.std);
  const Counters from = counted(args.stream, args.counter_offset);
  A z[4][kNoiseColumns];
  SMARTCS_UNROLL
  for (int i = 0; i < kNoiseColumns; ++i) {
    const Words words = philox(args.seed, from.stream, from.row + row, number + static_cast<uint32_t>(i));
    box_muller(words.at[0], words.at[1], std, &z[0][i], &z[1][i]);
    box_muller(words.at[2], words.at[3], std, &z[2][i], &z[3][i]);
  }
  S* out = static_cast<S*>(args.noise) + static_cast<int64_t>(row) * args.columns;
  SMARTCS_UNROLL
  for (int word = 0; word < 4; ++word) store(out, column_of(number) + 16 * word, args.columns, z[word]);
}

// What becomes of one number, once the norms of its group are known: the same for the whole group.
template <class A>
struct Move {
  enum Shape { ascend, keep, sign, divide, clamp, scale, shrink } shape = ascend;
  A step, divisor = 1;
  A number = 0;  // to divide by, clamp to or scale by
  double threshold = 0;

  __device__ __forceinline__ A ascent(A v, A g) const { return v + g / divisor * step; }

  __device__ __forceinline__ A operator()(A v, A g) const {
    if (shape == keep) return v;
    const A w = ascent(v, g);
    if (shape == sign) return w > A(0) ? A(1) : w < A(0) ? A(-1) : w - w;  // NaN stays
    if (shape == divide) return w / number;
    if (shape == clamp) return w > number ? number : w < -number ? -number : w;
    if (shape == scale) return w * number;
    if (shape == shrink) {
      // max(|w| - t, 0) with the sign of w; the difference in double, as it may be small beside both.
      const double rest = fabs(static_cast<double>(w)) - threshold;
      const A size = rest < 0 ? A(0) : static_cast<A>(rest);
      return w < A(0) ? -size : size;
    }
    return w;
  }
};

// The norm of value(v, g) over a group.
template <class A, class Shared, class F>
__device__ __forceinline__ double length(Norm norm, const Shared& share, F value) {
  double sum[1] = {0}, top[1] = {0};
  share.sweep([&](int64_t, int, const auto& v, const auto& g) {
    SMARTCS_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(v) / sizeof(A)); ++i) {
      const double x = fabs(static_cast<double>(value(v[i], g[i])));
      top[0] = Max()(x, top[0]);
      sum[0] += norm == Norm::two ? x * x : x;
    }
  });
  if (norm == Norm::inf) {
    over_block<kStepThreads, 0, 1>(top);
    return top[0];
  }
  over_block<kStepThreads, 1, 0>(sum);
  return norm == Norm::two ? sqrt(sum[0]) : sum[0];
}

// The t for which max(|w| - t, 0) sums to radius, where |w| sums to more: t follows from the set of numbers above it,
// and starting from all of them that set only shrinks until it is its own (Michelot 1986). Needs no sorting.
template <class A, class Shared>
__device__ __forceinline__ double threshold(const Shared& share, double size, double radius, const Move<A>& move) {
  double above = static_cast<double>(share.size);
  for (;;) {
    const double t = (size - radius) / above;
    double next[2] = {0, 0};  // sum and count of those above t
    share.sweep([&](int64_t, int count, const auto& v, const auto& g) {
      SMARTCS_UNROLL
      for (int i = 0; i < static_cast<int>(sizeof(v) / sizeof(A)); ++i) {
        const double x = fabs(static_cast<double>(move.ascent(v[i], g[i])));
        if (i >= count || !(x > t)) continue;
        next[0] += x;
        next[1] += 1;
      }
    });
    over_block<kStepThreads, 2, 0>(next);
    if (!(next[1] > 0 && next[1] < above)) return t;
    size = next[0];
    above = next[1];
  }
}

template <class A, class Shared>
__device__ __forceinline__ Move<A> move_of(const PerturbStep& args, const Shared& share) {
  Move<A> move;
  move.step = static_cast<A>(args.step_size);
  const auto gradient = [](A, A g) { return g; };
  const auto ascent = [&](A v, A g) { return move.ascent(v, g); };
  if (args.update == Update::mtdnn) {
    move.shape = args.norm == Norm::one ? Move<A>::sign : Move<A>::divide;
    if (args.norm != Norm::one) move.number = static_cast<A>(length<A>(args.norm, share, ascent) + args.norm_eps);
    return move;
  }
  if (args.update == Update::paper) {
    const double size = length<A>(args.norm, share, gradient);
    move.shape = size == 0 ? Move<A>::keep : Move<A>::divide;
    move.number = static_cast<A>(size);
    return move;
  }
  // Divided before it is multiplied: the reciprocal of a very small peak is infinite.
  const A peak = static_cast<A>(length<A>(Norm::inf, share, gradient));
  move.divisor = peak > A(0) ? peak : A(1);
  if (args.norm == Norm::inf) {
    move.shape = Move<A>::clamp;
    move.number = static_cast<A>(args.radius);
    return move;
  }
  const double size = length<A>(args.norm, share, ascent);
  if (!(size > args.radius)) return move;
  if (args.norm == Norm::two) {
    move.shape = Move<A>::scale;
    move.number = static_cast<A>(args.radius / size);
  } else {
    move.threshold = threshold<A>(share, size, args.radius, move);
    move.shape = Move<A>::shrink;
  }
  return move;
}

// One group: its norms, its new numbers, its statistics. The last are of v' as it is stored.
template <class S, int kHold>
__device__ __forceinline__ void step_group(const PerturbStep& args, int64_t begin, int64_t size, int64_t group) {
  using A = Compute<S>;
  const Share<S, kHold> share(static_cast<const S*>(args.v) + begin, static_cast<const S*>(args.g) + begin, size,
                              static_cast<int>(threadIdx.x), kStepThreads);
  S* moved = static_cast<S*>(args.moved) + begin;
  const Move<A> move = move_of<A>(args, share);
  enum { product, squares, g_squares, sum, broken, top, kTotals };
  double total[kTotals] = {};
  share.sweep([&](int64_t first, int, const auto& v, const auto& g) {
    A y[kPack<S>];
    SMARTCS_UNROLL
    for (int i = 0; i < kPack<S>; ++i) {
      y[i] = rounded<S>(move(v[i], g[i]));
      const double stored = y[i], gradient = g[i];
      total[product] += stored * gradient;
      total[squares] += stored * stored;
      total[g_squares] += gradient * gradient;
      total[sum] += fabs(stored);
      total[broken] += (v[i] - v[i]) + (g[i] - g[i]) + (y[i] - y[i]);  // 0 or NaN
      total[top] = Max()(fabs(stored), total[top]);
    }
    store(moved, first, size, y);
  });
  over_block<kStepThreads, top, 1>(total);
  const bool finite = total[broken] == 0;
  if (!finite) {
    share.sweep([&](int64_t first, int, const auto&, const auto&) {
      const A zero[kPack<S>] = {};
      store(moved, first, size, zero);
    });
  }
  if (threadIdx.x != 0) return;
  const double two = sqrt(total[squares]), lengths = two * sqrt(total[g_squares]);
  const double size_of = args.norm == Norm::inf ? total[top] : args.norm == Norm::two ? two : total[sum];
  A* statistics = static_cast<A*>(args.statistics) + 3 * group;
  statistics[0] = finite && lengths > 0 ? static_cast<A>(total[product] / lengths) : A(0);
  statistics[1] = finite ? static_cast<A>(size_of) : A(0);
  statistics[2] = finite ? A(1) : A(0);
}

__device__ __forceinline__ int64_t clamped(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

template <class S>
__global__ void __launch_bounds__(kStepThreads) perturb_step_kernel(PerturbStep args) {
  const int64_t group = blockIdx.x;
  int64_t first = group, last = group + 1;
  if (args.cu_seqlens != nullptr) {
    // The host does not wait to look at these. Wrong ones give wrong groups, but none outside the tensors.
    first = clamped(args.cu_seqlens[group], 0, args.rows);
    last = clamped(args.cu_seqlens[group + 1], first, args.rows);
  }
  const int64_t begin = first * args.columns, size = (last - first) * args.columns;
  if (size <= kStepHold * kStepThreads * kPack<S>) {
    step_group<S, kStepHold>(args, begin, size, group);
  } else {
    step_group<S, 0>(args, begin, size, group);
  }
}

// Launches, one kernel each.
template <class S>
void perturb_noise(const PerturbNoise& args, cudaStream_t stream) {
  const int64_t blocks = ceil_div(noise_threads(args.rows, args.columns), kNoiseThreads);
  launch(perturb_noise_kernel<S>, blocks, kNoiseThreads, stream, args);
}

template <class S>
void perturb_step(const PerturbStep& args, cudaStream_t stream) {
  launch(perturb_step_kernel<S>, args.groups, kStepThreads, stream, args);
}

}  // namespace smartcs::cuda
