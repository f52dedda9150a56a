// One pass over memory: every number of a parameter, its moments and its anchor is read and written once.
#include "adamw.h"
#include "vec.h"

namespace smartcs::SMARTCS_ISA {
namespace {

SMARTCS_INLINE Vec<float> root(Vec<float> x) {
  return sqrt(x);
}
SMARTCS_INLINE Vec<double> root(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::sqrt(x[i]);
  return x;
}

// a + weight (theta - a), written so that weight 1 gives theta and equal numbers stay, both to the last bit.
template <class A>
SMARTCS_INLINE Vec<A> followed(Vec<A> a, Vec<A> theta, A weight) {
  return weight < A(0.5) ? a + (theta - a) * weight : theta - (theta - a) * (A(1) - weight);
}

template <class A, bool Anchored>
void update_span(const AdamWTensor& args, const A* grad, int64_t begin, int64_t end) {
  A* theta = static_cast<A*>(args.theta) + begin;
  A* exp_avg = static_cast<A*>(args.exp_avg) + begin;
  A* exp_avg_sq = static_cast<A*>(args.exp_avg_sq) + begin;
  A* anchor = Anchored ? static_cast<A*>(args.anchor) + begin : nullptr;
  const A grad_scale = static_cast<A>(args.grad_scale), decay = static_cast<A>(args.decay);
  const A new1 = static_cast<A>(1 - args.beta1), old2 = static_cast<A>(args.beta2);
  const A new2 = static_cast<A>(1 - args.beta2), step_size = static_cast<A>(args.step_size);
  const A inverse_root = static_cast<A>(args.inverse_root), eps = static_cast<A>(args.eps);
  const A weight = static_cast<A>(args.anchor_weight);
  sweep<A>(end - begin, [&](int64_t j, auto n) {
    const Vec<A> g = load(grad + j, n) * grad_scale;
    Vec<A> m = load(exp_avg + j, n), v = load(exp_avg_sq + j, n), t = load(theta + j, n);
    m += (g - m) * new1;
    v = v * old2 + g * g * new2;
    t = t * decay - m * step_size / (root(v) * inverse_root + eps);
    store(exp_avg + j, m, n);
    store(exp_avg_sq + j, v, n);
    store(theta + j, t, n);
    if constexpr (Anchored) store(anchor + j, followed<A>(load(anchor + j, n), t, weight), n);
  });
}

template <class A>
void update(const AdamWTensor& args, const void* grad, int64_t begin, int64_t end) {
  const A* g = static_cast<const A*>(grad);
  args.anchor == nullptr ? update_span<A, false>(args, g, begin, end) : update_span<A, true>(args, g, begin, end);
}

template <class A>
void follow(const AdamWTensor& args, int64_t begin, int64_t end) {
  const A* theta = static_cast<const A*>(args.theta) + begin;
  A* anchor = static_cast<A*>(args.anchor) + begin;
  const A weight = static_cast<A>(args.anchor_weight);
  sweep<A>(end - begin, [&](int64_t j, auto n) {
    store(anchor + j, followed<A>(load(anchor + j, n), load(theta + j, n), weight), n);
  });
}

template <class A>
void idle(const AdamWTensor& args, int64_t begin, int64_t end) {
  if (args.decay != 1) {
    A* theta = static_cast<A*>(args.theta) + begin;
    const A decay = static_cast<A>(args.decay);
    sweep<A>(end - begin, [&](int64_t j, auto n) { store(theta + j, load(theta + j, n) * decay, n); });
  }
  if (args.anchor != nullptr) follow<A>(args, begin, end);
}

template <class A>
double squares(const void* values, int64_t count) {
  typedef A Part __attribute__((vector_size(kLanes<double> * sizeof(A))));
  constexpr int kSums = 4;  // more than one, so that an addition need not wait for the one before
  const A* from = static_cast<const A*>(values);
  Vec<double> sums[kSums] = {};
  int64_t j = 0;
  for (; j + kSums * kLanes<double> <= count; j += kSums * kLanes<double>) {
    SMARTCS_UNROLL
    for (int s = 0; s < kSums; ++s) {
      Part part;
      std::memcpy(&part, from + j + s * kLanes<double>, sizeof part);
      const Vec<double> x = __builtin_convertvector(part, Vec<double>);
      sums[s] += x * x;
    }
  }
  double rest = 0;
  for (; j < count; ++j) rest += static_cast<double>(from[j]) * static_cast<double>(from[j]);
  return sum_lanes<double>((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

template <class A>
void add(const void* first, const void* second, void* sum, int64_t count) {
  const A *x = static_cast<const A*>(first), *y = static_cast<const A*>(second);
  A* to = static_cast<A*>(sum);
  sweep<A>(count, [&](int64_t j, auto n) { store(to + j, load(x + j, n) + load(y + j, n), n); });
}

}  // namespace

const AdamWKernels adamw_kernels = {
    {update<float>, update<double>},   {idle<float>, idle<double>}, {follow<float>, follow<double>},
    {squares<float>, squares<double>}, {add<float>, add<double>},
};

}  // namespace smartcs::SMARTCS_ISA
