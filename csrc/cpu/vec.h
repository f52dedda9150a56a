// Vectors of the widest kind one instruction set has, and the elementary functions the kernels need.
//
// Written with the compiler's vector extension (GCC and Clang), so one source serves SSE2, AVX2, AVX-512 and
// NEON. Everything lives in the namespace of its instruction set: a template instantiated here for AVX-512
// must never be merged by the linker with the baseline's. For the same reason kernels call no inline function
// of the standard library. Float functions are polynomials; double goes through libm lane by lane (it serves
// the gradient checks).
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define SMARTCS_UNROLL _Pragma("unroll")
#else
#define SMARTCS_UNROLL _Pragma("GCC unroll 16")
#endif
#define SMARTCS_INLINE static inline __attribute__((always_inline))

namespace smartcs::SMARTCS_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

struct bf16 {
  uint16_t bits;
};

// The type a storage type is computed in: statistics and sums of bf16 data are float.
template <class S>
struct ComputeOf {
  using type = S;
};
template <>
struct ComputeOf<bf16> {
  using type = float;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

template <class T>
SMARTCS_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // not `{} + x`: that would turn -0 into +0
}

SMARTCS_INLINE float widen(float x) {
  return x;
}
SMARTCS_INLINE double widen(double x) {
  return x;
}
SMARTCS_INLINE float widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

SMARTCS_INLINE void narrow(float x, float* y) {
  *y = x;
}
SMARTCS_INLINE void narrow(double x, double* y) {
  *y = x;
}
SMARTCS_INLINE void narrow(float x, bf16* y) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // Round to nearest even; a NaN keeps its sign and stays quiet instead of being rounded into infinity.
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  y->bits = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? (bits >> 16) | 0x40u : rounded);
}

// Full: all lanes. An int instead: that many lanes, the rest read as zero and not written.
struct Full {};

// bf16 as integers: one number's bits in the low half of every lane.
typedef uint16_t HalfVec __attribute__((vector_size(kVectorBytes / 2)));

SMARTCS_INLINE Vec<uint32_t> load_bits(const bf16* p, Full) {
#if defined(__AVX512F__)
  __m256i bits;  // GCC converts in two halves
  std::memcpy(&bits, p, sizeof bits);
  return (Vec<uint32_t>)_mm512_maskz_cvtepu16_epi32(0xFFFF, bits);  // zero-masked: see multiply_wide in philox.h
#else
  HalfVec bits;
  std::memcpy(&bits, p, sizeof bits);
  return __builtin_convertvector(bits, Vec<uint32_t>);
#endif
}
SMARTCS_INLINE Vec<uint32_t> load_bits(const bf16* p, int count) {
  Vec<uint32_t> bits{};
  for (int i = 0; i < count; ++i) bits[i] = p[i].bits;
  return bits;
}

SMARTCS_INLINE void store_bits(bf16* p, Vec<uint32_t> bits, Full) {
  const HalfVec low = __builtin_convertvector(bits, HalfVec);
  std::memcpy(p, &low, sizeof low);
}
SMARTCS_INLINE void store_bits(bf16* p, Vec<uint32_t> bits, int count) {
  for (int i = 0; i < count; ++i) p[i].bits = static_cast<uint16_t>(bits[i]);
}

// As narrow() above.
SMARTCS_INLINE Vec<uint32_t> rounded_bits(Vec<float> x) {
  Vec<uint32_t> bits;
  std::memcpy(&bits, &x, sizeof bits);
  const Vec<uint32_t> high = bits >> 16;
  return x != x ? high | 0x40u : (bits + 0x7FFFu + (high & 1u)) >> 16;
}

template <class S>
SMARTCS_INLINE Vec<Compute<S>> load(const S* p, Full) {
  Vec<Compute<S>> v;
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    std::memcpy(&v, p, sizeof v);
  } else {
    const Vec<uint32_t> bits = load_bits(p, Full{}) << 16;
    std::memcpy(&v, &bits, sizeof v);
  }
  return v;
}

template <class S>
SMARTCS_INLINE Vec<Compute<S>> load(const S* p, int count) {
  Vec<Compute<S>> v{};
  for (int i = 0; i < count; ++i) v[i] = widen(p[i]);
  return v;
}

template <class S>
SMARTCS_INLINE void store(S* p, Vec<Compute<S>> v, Full) {
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    std::memcpy(p, &v, sizeof v);
  } else {
    store_bits(p, rounded_bits(v), Full{});
  }
}

template <class S>
SMARTCS_INLINE void store(S* p, Vec<Compute<S>> v, int count) {
  for (int i = 0; i < count; ++i) narrow(v[i], p + i);
}

// Calls body(j, Full{}) for every whole vector of [0, n) and body(j, count) for the rest.
template <class A, class F>
SMARTCS_INLINE void sweep(int64_t n, F&& body) {
  int64_t j = 0;
  for (; j + kLanes<A> <= n; j += kLanes<A>) body(j, Full{});
  if (j < n) body(j, static_cast<int>(n - j));
}

template <class A>
SMARTCS_INLINE A sum_lanes(const Vec<A>& v) {
  A lanes[kLanes<A>];
  std::memcpy(lanes, &v, sizeof v);
  SMARTCS_UNROLL
  for (int half = kLanes<A> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <class A>
SMARTCS_INLINE A max_lanes(const Vec<A>& v) {
  A best = v[0];
  for (int i = 1; i < kLanes<A>; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

template <class A>
SMARTCS_INLINE Vec<A> abs(Vec<A> x) {
  return x < Vec<A>{} ? -x : x;
}

template <class A>
SMARTCS_INLINE Vec<A> max(Vec<A> x, Vec<A> y) {
  return x > y ? x : y;
}

SMARTCS_INLINE Vec<float> sqrt(Vec<float> x) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)x);  // zero-masked: see multiply_wide in philox.h
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = ::sqrtf(x[i]);
  return x;
#endif
}

SMARTCS_INLINE Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp(x[i]);
  return x;
}

// exp(r), where x = n ln 2 + r, n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 in two parts so that r is exact to float. n
// is left in the low mantissa bits of `shifted`, above those of 1.5 * 2^23.
SMARTCS_INLINE Vec<float> exp_of_rest(Vec<float> x, Vec<float>& shifted) {
  constexpr float kRound = 12582912.0f;
  shifted = x * 1.44269504f + kRound;
  const Vec<float> n = shifted - kRound;
  Vec<float> r = x - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  Vec<float> y = r * 1.98412698e-4f + 1.38888889e-3f;
  y = y * r + 8.33333333e-3f;
  y = y * r + 4.16666667e-2f;
  y = y * r + 1.66666667e-1f;
  y = y * r + 0.5f;
  return y * (r * r) + r + 1.0f;
}

// exp(x) = 2^n exp(r). Results below the smallest normal number are zero, results above the largest are infinite; at
// most 1.1 ulp.
SMARTCS_INLINE Vec<float> exp(Vec<float> x) {
  Vec<float> shifted;
  Vec<float> y = exp_of_rest(x, shifted);
  Vec<int32_t> exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  // 2^n in two factors: n = 128 is not a float's exponent, yet exp(88.5) is a float.
  exponent = exponent - 0x4B400000;
  const Vec<int32_t> half = exponent >> 1;
  const Vec<int32_t> first_bits = (half + 127) << 23, second_bits = (exponent - half + 127) << 23;
  Vec<float> first, second;
  std::memcpy(&first, &first_bits, sizeof first);
  std::memcpy(&second, &second_bits, sizeof second);
  y = y * first * second;
  y = x < -87.3365448f ? Vec<float>{} : y;
  y = x > 88.7228394f ? splat(INFINITY) : y;
  return x != x ? x : y;
}

// log(x) of positive normal numbers: x = 2^e m with sqrt(1/2) <= m < sqrt 2, and log m = 2 artanh(s) for
// s = (m - 1) / (m + 1), |s| < 0.172, by its Taylor series: relatively exact near 1 too, as m - 1 is exact there.
SMARTCS_INLINE Vec<float> log(Vec<float> x) {
  Vec<int32_t> bits;
  std::memcpy(&bits, &x, sizeof bits);
  const Vec<int32_t> exponent = (bits - 0x3F3504F3) >> 23;  // the bits of sqrt(1/2)
  bits = bits - (exponent << 23);
  Vec<float> m;
  std::memcpy(&m, &bits, sizeof m);
  const Vec<float> e = __builtin_convertvector(exponent, Vec<float>);
  const Vec<float> s = (m - 1.0f) / (m + 1.0f), z = s * s;
  Vec<float> y = z * (2.0f / 9) + 2.0f / 7;
  y = y * z + 2.0f / 5;
  y = y * z + 2.0f / 3;
  y = (y * z) * s + 2.0f * s;
  return e * 0.693145752f + (y + e * 1.42860677e-6f);
}

// sin and cos of 2 pi x for 0 <= x < 1. Quarter turns are split off exactly; what is left, at most pi / 4, goes through
// the Taylor series.
SMARTCS_INLINE void sin_cos_turns(Vec<float> x, Vec<float>& sine, Vec<float>& cosine) {
  constexpr float kRound = 12582912.0f;  // as in exp
  const Vec<float> quarters = x * 4.0f, shifted = quarters + kRound;
  const Vec<float> a = (quarters - (shifted - kRound)) * 1.57079633f, z = a * a;
  Vec<float> s = z * (1.0f / 362880) - 1.0f / 5040;
  s = s * z + 1.0f / 120;
  s = s * z - 1.0f / 6;
  s = (s * z) * a + a;
  Vec<float> c = z * (-1.0f / 3628800) + 1.0f / 40320;
  c = c * z - 1.0f / 720;
  c = c * z + 1.0f / 24;
  c = c * z - 0.5f;
  c = c * z + 1.0f;
  Vec<int32_t> turn;
  std::memcpy(&turn, &shifted, sizeof turn);
  const Vec<int32_t> odd = (turn & 1) != 0;
  sine = odd ? c : s;
  cosine = odd ? s : c;
  sine = (turn & 2) != 0 ? -sine : sine;
  cosine = ((turn + 1) & 2) != 0 ? -cosine : cosine;
}

}  // namespace smartcs::SMARTCS_ISA
