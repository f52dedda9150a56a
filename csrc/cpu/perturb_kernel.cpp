// The rows of a group lie side by side, so a group is one run of numbers, read twice (three times to project it on a
// 2-norm ball, a few times more on a 1-norm ball); a row stays in cache between the readings. Norms and products are
// summed in double: the square of a gradient of 1e-25 is no float.
#include "perturb.h"

#include "philox.h"
#include "vec.h"

namespace smartcs::SMARTCS_ISA {
namespace {

SMARTCS_INLINE void box_muller(Vec<uint32_t> even, Vec<uint32_t> odd, float* even_out, float* odd_out) {
  // 24 bits: as int32, whose conversion to float every instruction set has, and exact.
  const Vec<int32_t> first = (Vec<int32_t>)(even >> 8) + 1, second = (Vec<int32_t>)(odd >> 8);
  const Vec<float> u1 = __builtin_convertvector(first, Vec<float>) * 0x1p-24f;
  const Vec<float> u2 = __builtin_convertvector(second, Vec<float>) * 0x1p-24f;
  const Vec<float> r = sqrt(log(u1) * -2.0f);
  Vec<float> sine, cosine;
  sin_cos_turns(u2, sine, cosine);
  store(even_out, r * cosine, Full{});
  store(odd_out, r * sine, Full{});
}

SMARTCS_INLINE void box_muller(Vec<uint32_t> even, Vec<uint32_t> odd, double* even_out, double* odd_out) {
  constexpr double kTurn = 6.283185307179586 * 0x1p-24;
  for (int i = 0; i < kLanes<uint32_t>; ++i) {
    const double r = ::sqrt(-2.0 * ::log(((even[i] >> 8) + 1) * 0x1p-24)), angle = (odd[i] >> 8) * kTurn;
    even_out[i] = r * ::cos(angle);
    odd_out[i] = r * ::sin(angle);
  }
}

template <class S>
void noise(const PerturbNoise& args, void* row_buffer, int64_t begin, int64_t end) {
  using A = Compute<S>;
  A* z = static_cast<A*>(row_buffer);
  const A std = static_cast<A>(args.std);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t number = args.first_row + row;
    philox_row(args.seed, args.stream, number, args.columns, [&](int64_t first, const Vec<uint32_t>(&words)[4]) {
      box_muller(words[0], words[1], z + first, z + first + 16);
      box_muller(words[2], words[3], z + first + 32, z + first + 48);
    });
    S* out = static_cast<S*>(args.noise) + row * args.columns;
    sweep<A>(args.columns, [&](int64_t j, auto n) { store(out + j, load(z + j, n) * std, n); });
  }
}

// The lanes of a vector as vectors of double.
template <class A>
struct Wide {
  // NOLINTNEXTLINE(bugprone-sizeof-expression): A may be double
  static constexpr int kParts = sizeof(double) / sizeof(A);
  Vec<double> parts[kParts];
};

SMARTCS_INLINE Wide<double> widened(Vec<double> x) {
  return {{x}};
}
SMARTCS_INLINE Wide<float> widened(Vec<float> x) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  Half halves[2];
  std::memcpy(halves, &x, sizeof x);
  return {{__builtin_convertvector(halves[0], Vec<double>), __builtin_convertvector(halves[1], Vec<double>)}};
}

SMARTCS_INLINE Vec<double> narrowed(const Wide<double>& x) {
  return x.parts[0];
}
SMARTCS_INLINE Vec<float> narrowed(const Wide<float>& x) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  const Half halves[2] = {__builtin_convertvector(x.parts[0], Half), __builtin_convertvector(x.parts[1], Half)};
  Vec<float> y;
  std::memcpy(&y, halves, sizeof y);
  return y;
}

template <class A>
SMARTCS_INLINE void add(Vec<double>& total, Vec<A> x) {
  for (const Vec<double>& part : widened(x).parts) total += part;
}

template <class A>
SMARTCS_INLINE void add_product(Vec<double>& total, Vec<A> x, Vec<A> y) {
  const Wide<A> a = widened(x), b = widened(y);
  for (int i = 0; i < Wide<A>::kParts; ++i) total += a.parts[i] * b.parts[i];
}

// The norm of count numbers; x(j, n) yields those from j on, with zeros in the lanes beyond n.
template <class A, class F>
double length(Norm norm, int64_t count, F x) {
  if (norm == Norm::inf) {
    Vec<A> top{};
    sweep<A>(count, [&](int64_t j, auto n) { top = max<A>(abs<A>(x(j, n)), top); });
    return max_lanes<A>(top);
  }
  Vec<double> total{};
  if (norm == Norm::one) {
    sweep<A>(count, [&](int64_t j, auto n) { add<A>(total, abs<A>(x(j, n))); });
    return sum_lanes<double>(total);
  }
  sweep<A>(count, [&](int64_t j, auto n) {
    const Vec<A> y = x(j, n);
    add_product<A>(total, y, y);
  });
  return ::sqrt(sum_lanes<double>(total));
}

// The t for which max(|x| - t, 0) sums to radius, where |x| sums to more: t follows from the set of numbers above it,
// and starting from all of them that set only shrinks until it is its own (Michelot 1986). Needs no sorting.
template <class A, class F>
double threshold(int64_t count, double sum, double radius, F x) {
  double above = static_cast<double>(count);
  for (;;) {
    const double t = (sum - radius) / above;
    Vec<double> next_sum{}, next_above{};
    sweep<A>(count, [&](int64_t j, auto n) {
      for (const Vec<double>& part : widened(abs<A>(x(j, n))).parts) {
        next_sum += part > t ? part : Vec<double>{};
        next_above += part > t ? splat(1.0) : Vec<double>{};
      }
    });
    const double remaining = sum_lanes<double>(next_above);
    if (!(remaining > 0 && remaining < above)) return t;
    above = remaining;
    sum = sum_lanes<double>(next_sum);
  }
}

// max(|x| - t, 0) with the sign of x; the difference in double, as it may be small beside both.
template <class A>
SMARTCS_INLINE Vec<A> shrunk(Vec<A> x, double t) {
  Wide<A> wide = widened(abs<A>(x));
  for (Vec<double>& part : wide.parts) part = part - t < 0.0 ? Vec<double>{} : part - t;
  const Vec<A> y = narrowed(wide);
  return x < Vec<A>{} ? -y : y;
}

// Writes moved(j, n) for a whole group, and the group's statistics: zeros where anything is not finite.
template <class S, class F, class A = Compute<S>>
void finish(Norm norm, int64_t count, const S* v, const S* g, S* out, A* statistics, F moved) {
  Vec<double> product{}, squares{}, g_squares{}, sum{};
  Vec<A> top{}, broken{};
  sweep<A>(count, [&](int64_t j, auto n) {
    store(out + j, moved(j, n), n);
    const Vec<A> y = load(out + j, n), d = load(g + j, n), x = load(v + j, n);
    // NOLINTNEXTLINE(misc-redundant-expression): what is not finite is no 0
    broken += (x - x) + (d - d) + (y - y);  // 0 or NaN
    add_product<A>(product, y, d);
    add_product<A>(squares, y, y);
    add_product<A>(g_squares, d, d);
    add<A>(sum, abs<A>(y));
    top = max<A>(abs<A>(y), top);
  });
  if (sum_lanes<A>(broken) != 0) {
    sweep<A>(count, [&](int64_t j, auto n) { store(out + j, Vec<A>{}, n); });
    for (int i = 0; i < 3; ++i) statistics[i] = 0;
    return;
  }
  const double two = ::sqrt(sum_lanes<double>(squares)), lengths = two * ::sqrt(sum_lanes<double>(g_squares));
  const double one = sum_lanes<double>(sum), inf = max_lanes<A>(top);
  statistics[0] = static_cast<A>(lengths > 0 ? sum_lanes<double>(product) / lengths : 0.0);
  statistics[1] = static_cast<A>(norm == Norm::inf ? inf : norm == Norm::two ? two : one);
  statistics[2] = 1;
}

template <class S>
void step_group(const PerturbStep& args, int64_t count, const S* v, const S* g, S* out, Compute<S>* statistics) {
  using A = Compute<S>;
  const A step = static_cast<A>(args.step_size);
  const auto gradient = [&](int64_t j, auto n) { return load(g + j, n); };
  const auto ascent = [&](int64_t j, auto n) { return load(v + j, n) + load(g + j, n) * step; };
  const auto write = [&](auto moved) { finish<S>(args.norm, count, v, g, out, statistics, moved); };
  if (args.update == Update::mtdnn) {
    if (args.norm == Norm::one) {
      return write([&](int64_t j, auto n) {
        const Vec<A> w = ascent(j, n), zero{};
        // NOLINTNEXTLINE(misc-redundant-expression): NaN stays
        return w > zero ? splat(A(1)) : w < zero ? splat(A(-1)) : w - w;
      });
    }
    const A size = static_cast<A>(length<A>(args.norm, count, ascent) + args.norm_eps);
    return write([&](int64_t j, auto n) { return ascent(j, n) / size; });
  }
  if (args.update == Update::paper) {
    const double size = length<A>(args.norm, count, gradient);
    if (size == 0) return write([&](int64_t j, auto n) { return load(v + j, n); });
    return write([&](int64_t j, auto n) { return ascent(j, n) / static_cast<A>(size); });
  }
  // Divided before it is multiplied: the reciprocal of a very small peak is infinite.
  const A peak = static_cast<A>(length<A>(Norm::inf, count, gradient)), divisor = peak > 0 ? peak : A(1);
  const auto normalised = [&](int64_t j, auto n) { return load(v + j, n) + load(g + j, n) / divisor * step; };
  const A radius = static_cast<A>(args.radius);
  if (args.norm == Norm::inf) {
    return write([&](int64_t j, auto n) {
      const Vec<A> w = normalised(j, n);
      return w > radius ? splat(radius) : w < -radius ? splat(-radius) : w;
    });
  }
  const double size = length<A>(args.norm, count, normalised);
  if (!(size > args.radius)) return write(normalised);
  if (args.norm == Norm::two) {
    const A scale = static_cast<A>(args.radius / size);
    return write([&](int64_t j, auto n) { return normalised(j, n) * scale; });
  }
  const double t = threshold<A>(count, size, args.radius, normalised);
  write([&](int64_t j, auto n) { return shrunk<A>(normalised(j, n), t); });
}

template <class S>
void step(const PerturbStep& args, int64_t begin, int64_t end) {
  const int64_t C = args.columns;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = (args.cu_seqlens == nullptr ? group : args.cu_seqlens[group]) * C;
    const int64_t last = (args.cu_seqlens == nullptr ? group + 1 : args.cu_seqlens[group + 1]) * C;
    step_group(args, last - first, static_cast<const S*>(args.v) + first, static_cast<const S*>(args.g) + first,
               static_cast<S*>(args.moved) + first, static_cast<Compute<S>*>(args.statistics) + 3 * group);
  }
}

}  // namespace

const PerturbKernels perturb_kernels = {
    {noise<float>, noise<double>, noise<bf16>},
    {step<float>, step<double>, step<bf16>},
};

}  // namespace smartcs::SMARTCS_ISA
