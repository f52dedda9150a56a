// Symmetrised KL divergence from logits on the GPU. Formulas, and why in this form: smartcs/ops/symmetric_kl.py. With
//   d = a - b,  e_k = d_k - d_m,  m the class with the largest b,  shift = log sum_j q_j exp(e_j),  x_k = log(p_k /
//   q_k) = e_k - shift, p_k - q_k = q_k expm1(x_k) where |x_k| < 1/2:
//
//   l     = sum_k (p_k - q_k) x_k
//   dl/da = (p_k - q_k) + p_k (x_k - sum_j p_j x_j),   dl/db = (q_k - p_k) - q_k (x_k - sum_j q_j x_j)
//
// `detach_targets` leaves the first term of each. Everything is computed in float32 (float64 for float64), which loses
// nothing: probabilities come from exp(a - max a), not from a - logsumexp(a), whose rounding grows with the logits; and
// where q is nearly certain, x of that class is as small as the other q's, which e = 0 there keeps exact.
//
// A row belongs to 1, 2, 4 .. 32 neighbouring lanes, as many as it has packs of 16 bytes. Up to 32 packs it is read
// once and stays in registers. Binary logits are independent: a pack per thread.
#pragma once

#include "common.cuh"

namespace smartcs::cuda {

struct SymmetricKlForward {
  int64_t rows, classes;
  bool bernoulli;     // every element is a binary logit of its own; classes is 1
  const void *a, *b;  // (N, K)
  void* loss;         // (N), compute type, written
};

struct SymmetricKlBackward {
  int64_t rows, classes;
  bool bernoulli;
  bool detach_targets;
  const void* grad_loss;  // (N), compute type
  const void *a, *b;      // (N, K)
  void *grad_a, *grad_b;  // (N, K), written; null when not wanted
};

// Bounds say "at least 1 block" where float64 would otherwise spill a few registers to make room for more.
constexpr int kKlThreads = 128;

// a - b, where equal infinities (a class masked on both sides) differ by nothing.
template <class A>
__device__ __forceinline__ A difference(A a, A b) {
  return a == b ? A(0) : a - b;
}

// p x, where a probability that is 0 makes even an infinite x nothing.
template <class A>
__device__ __forceinline__ A times(A p, A x) {
  return p == A(0) ? A(0) : p * x;
}

template <class A>
struct Class {
  A p, q, x, gap;  // x = log(p / q), gap = p - q
};

// What there is to know of a row before its classes are looked at.
template <class A>
struct Row {
  A top_a, top_b;    // maxima of a and b
  A top;             // d where b is largest
  A over_a, over_b;  // 1 over the sums of exp(a - top_a) and exp(b - top_b)
  A shift;

  // Ties go to the larger d, so that all lanes agree.
  __device__ __forceinline__ void follow(A b, A d) {
    if (b > top_b || (b == top_b && d > top)) {
      top_b = b;
      top = d;
    }
  }

  __device__ __forceinline__ Class<A> at(A a, A b) const {
    Class<A> c;
    c.p = exp(a - top_a) * over_a;
    c.q = exp(b - top_b) * over_b;
    c.x = difference(a, b) - top - shift;
    c.gap = c.x > A(-0.5) && c.x < A(0.5) ? c.q * expm1(c.x) : c.p - c.q;
    return c;
  }
};

template <class A, class Shared>
__device__ __forceinline__ Row<A> prepare(const Shared& share, int lanes) {
  Row<A> row{-INFINITY, -INFINITY, -INFINITY, 0, 0, 0};
  share.sweep([&](int64_t, int count, const auto& a, const auto& b) {
    SMARTCS_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(a) / sizeof(A)); ++i) {
      if (i >= count) continue;
      row.top_a = Max()(a[i], row.top_a);
      row.follow(b[i], difference(a[i], b[i]));
    }
  });
  row.top_a = over_lanes<Max>(row.top_a, lanes);
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    const A b = __shfl_xor_sync(kAllLanes, row.top_b, offset), d = __shfl_xor_sync(kAllLanes, row.top, offset);
    row.follow(b, d);
  }
  if (row.top == INFINITY || row.top == -INFINITY) row.top = 0;  // masked on one side: infinite, not inf - inf
  A sum_a = 0, sum_b = 0, weighted = 0, far = 0;
  share.sweep([&](int64_t, int count, const auto& a, const auto& b) {
    SMARTCS_UNROLL
    for (int i = 0; i < static_cast<int>(sizeof(a) / sizeof(A)); ++i) {
      if (i >= count) continue;
      const A weight = exp(b[i] - row.top_b), e = difference(a[i], b[i]) - row.top;
      sum_a += exp(a[i] - row.top_a);
      sum_b += weight;
      weighted += times(weight, expm1(e));
      const bool masked = a[i] == b[i] && b[i] == -INFINITY;  // on both sides: its e is of no distance
      if (!masked && !(e < A(0.5) && (e > A(-0.5) || weight == A(0)))) far += 1;
    }
  });
  sum_a = over_lanes<Sum>(sum_a, lanes);
  sum_b = over_lanes<Sum>(sum_b, lanes);
  weighted = over_lanes<Sum>(weighted, lanes);
  far = over_lanes<Sum>(far, lanes);
  row.over_a = 1 / sum_a;
  row.over_b = 1 / sum_b;
  row.shift = far == A(0) ? log1p(weighted / sum_b) : (row.top_a - row.top_b - row.top) + (log(sum_a) - log(sum_b));
  return row;
}

// The lanes' row and their place in it. Lanes beyond the last row take part in the shuffles, with a row of no classes.
struct Place {
  int lanes;
  int64_t row, size;
  int lane;

  template <class Arguments>
  __device__ Place(const Arguments& args, int lanes) : lanes(lanes) {
    const int thread = static_cast<int>(threadIdx.x);
    row = static_cast<int64_t>(blockIdx.x) * (kKlThreads / lanes) + thread / lanes;
    lane = thread % lanes;
    size = row < args.rows ? args.classes : 0;
    if (size == 0) row = 0;
  }
};

__host__ __device__ inline int lanes_for(int64_t classes, int pack) {
  int lanes = 1;
  while (lanes < kWarp && static_cast<int64_t>(lanes) * pack < classes) lanes *= 2;
  return lanes;
}

template <class S, int kHold>
__global__ void __launch_bounds__(kKlThreads, 1) categorical_forward_kernel(SymmetricKlForward args) {
  using A = Compute<S>;
  const Place place(args, lanes_for(args.classes, kPack<S>));
  const int64_t start = place.row * args.classes;
  const Share<S, kHold> share(static_cast<const S*>(args.a) + start, static_cast<const S*>(args.b) + start, place.size,
                              place.lane, place.lanes);
  const Row<A> row = prepare<A>(share, place.lanes);
  A loss = 0;
  share.sweep([&](int64_t, int count, const auto& a, const auto& b) {
    SMARTCS_UNROLL
    for (int i = 0; i < kPack<S>; ++i) {
      if (i >= count) continue;
      const Class<A> c = row.at(a[i], b[i]);
      loss += times(c.gap, c.x);
    }
  });
  loss = over_lanes<Sum>(loss, place.lanes);
  if (place.size > 0 && place.lane == 0) static_cast<A*>(args.loss)[place.row] = loss;
}

template <class S, int kHold>
__global__ void __launch_bounds__(kKlThreads, 1) categorical_backward_kernel(SymmetricKlBackward args) {
  using A = Compute<S>;
  const Place place(args, lanes_for(args.classes, kPack<S>));
  const int64_t start = place.row * args.classes;
  const Share<S, kHold> share(static_cast<const S*>(args.a) + start, static_cast<const S*>(args.b) + start, place.size,
                              place.lane, place.lanes);
  const Row<A> row = prepare<A>(share, place.lanes);
  A mean_p = 0, mean_q = 0;
  if (!args.detach_targets) {
    share.sweep([&](int64_t, int count, const auto& a, const auto& b) {
      SMARTCS_UNROLL
      for (int i = 0; i < kPack<S>; ++i) {
        if (i >= count) continue;
        const Class<A> c = row.at(a[i], b[i]);
        mean_p += times(c.p, c.x);
        mean_q += times(c.q, c.x);
      }
    });
    mean_p = over_lanes<Sum>(mean_p, place.lanes);
    mean_q = over_lanes<Sum>(mean_q, place.lanes);
  }
  const A g = place.size > 0 ? static_cast<const A*>(args.grad_loss)[place.row] : A(0);
  share.sweep([&](int64_t first, int count, const auto& a, const auto& b) {
    A da[kPack<S>], db[kPack<S>];
    SMARTCS_UNROLL
    for (int i = 0; i < kPack<S>; ++i) {
      da[i] = db[i] = 0;
      if (i >= count) continue;
      const Class<A> c = row.at(a[i], b[i]);
      const bool full = !args.detach_targets;
      da[i] = g * (c.gap + (full ? times(c.p, c.x - mean_p) : A(0)));
      db[i] = -g * (c.gap + (full ? times(c.q, c.x - mean_q) : A(0)));
    }
    if (args.grad_a != nullptr) store(static_cast<S*>(args.grad_a) + start, first, place.size, da);
    if (args.grad_b != nullptr) store(static_cast<S*>(args.grad_b) + start, first, place.size, db);
  });
}

// p - q for p = sigmoid(a), q = sigmoid(b), x = a - b: sigmoid(a) sigmoid(-b) (1 - exp(-x)), or its mirror image where
// that exponential could overflow.
template <class A>
__device__ __forceinline__ A binary_gap(A a, A b, A x) {
  return x > A(0) ? -expm1(-x) / ((1 + exp(-a)) * (1 + exp(b))) : expm1(x) / ((1 + exp(a)) * (1 + exp(-b)));
}

template <class S>
__global__ void __launch_bounds__(kKlThreads) bernoulli_forward_kernel(SymmetricKlForward args) {
  using A = Compute<S>;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kKlThreads + threadIdx.x) * kPack<S>;
  A a[kPack<S>], b[kPack<S>], loss[kPack<S>];
  load(static_cast<const S*>(args.a), first, args.rows, a);
  load(static_cast<const S*>(args.b), first, args.rows, b);
  SMARTCS_UNROLL
  for (int i = 0; i < kPack<S>; ++i) {
    const A x = difference(a[i], b[i]);
    loss[i] = times(binary_gap(a[i], b[i], x), x);
  }
  store(static_cast<A*>(args.loss), first, args.rows, loss);
}

template <class S>
__global__ void __launch_bounds__(kKlThreads) bernoulli_backward_kernel(SymmetricKlBackward args) {
  using A = Compute<S>;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kKlThreads + threadIdx.x) * kPack<S>;
  A a[kPack<S>], b[kPack<S>], g[kPack<S>], da[kPack<S>], db[kPack<S>];
  load(static_cast<const S*>(args.a), first, args.rows, a);
  load(static_cast<const S*>(args.b), first, args.rows, b);
  load(static_cast<const A*>(args.grad_loss), first, args.rows, g);
  SMARTCS_UNROLL
  for (int i = 0; i < kPack<S>; ++i) {
    const A x = difference(a[i], b[i]), gap = binary_gap(a[i], b[i], x);
    A more_a = 0, more_b = 0;
    if (!args.detach_targets) {
      // p (1 - p), with 1 - p as the other outcome's probability: it would round to 0 long before p does.
      more_a = times(1 / ((1 + exp(-a[i])) * (1 + exp(a[i]))), x);
      more_b = times(1 / ((1 + exp(-b[i])) * (1 + exp(b[i]))), x);
    }
    da[i] = g[i] * (gap + more_a);
    db[i] = -g[i] * (gap + more_b);
  }
  if (args.grad_a != nullptr) store(static_cast<S*>(args.grad_a), first, args.rows, da);
  if (args.grad_b != nullptr) store(static_cast<S*>(args.grad_b), first, args.rows, db);
}

// Launches, one kernel each.
template <class Arguments>
int64_t kl_blocks(const Arguments& args, int pack) {
  const int64_t threads = args.bernoulli ? ceil_div(args.rows, pack) : args.rows * lanes_for(args.classes, pack);
  return ceil_div(threads, kKlThreads);
}

template <class S>
void symmetric_kl_forward(const SymmetricKlForward& args, cudaStream_t stream) {
  const auto kernel = args.bernoulli                    ? bernoulli_forward_kernel<S>
                      : args.classes > kWarp * kPack<S> ? categorical_forward_kernel<S, 0>
                                                        : categorical_forward_kernel<S, 1>;
  launch(kernel, kl_blocks(args, kPack<S>), kKlThreads, stream, args);
}

template <class S>
void symmetric_kl_backward(const SymmetricKlBackward& args, cudaStream_t stream) {
  const auto kernel = args.bernoulli                    ? bernoulli_backward_kernel<S>
                      : args.classes > kWarp * kPack<S> ? categorical_backward_kernel<S, 0>
                                                        : categorical_backward_kernel<S, 1>;
  launch(kernel, kl_blocks(args, kPack<S>), kKlThreads, stream, args);
}

}  // namespace smartcs::cuda
