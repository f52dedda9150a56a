// GELU(z) = z Phi(z) and its derivative Phi(z) + z phi(z), from one exponential.
//
// With u = |z| / sqrt 2 the normal tail is Phi(-|z|) = erfc(u) / 2 = exp(-u^2) t P(t), t = 1 / (1 + u / 2); P
// is a polynomial fitted here (Lawson's iteration on Chebyshev nodes, weighted for relative error 4.3e-8 on 0
// <= u <= 10). The tail keeps its relative accuracy for large negative z, where 1 + erf(z / sqrt 2) would
// cancel.
#pragma once

#include "vec.h"

namespace smartcs::SMARTCS_ISA {

// exp(-z^2 / 2), as exp() in vec.h computes it; the argument has one sign, so one factor 2^n does. At most 1.1 ulp of
// the exponential of the rounded square, zero below the smallest normal number.
SMARTCS_INLINE Vec<float> bell_of(Vec<float> z) {
  const Vec<float> x = z * z * -0.5f;
  Vec<float> shifted;
  const Vec<float> y = exp_of_rest(x, shifted);
  Vec<uint32_t> bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3F800000u;  // the bits of 1.5 * 2^23 leave on the left
  Vec<float> scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x < -87.3365448f ? Vec<float>{} : y * scale;
}

// cdf = Phi(z), bell = exp(-z^2 / 2)
SMARTCS_INLINE void normal(Vec<float> z, Vec<float>& cdf, Vec<float>& bell) {
  const Vec<float> a = z < 0 ? -z : z;
  bell = bell_of(z);
  const Vec<float> t = 1.0f / (a * 0.353553391f + 1.0f);
  Vec<float> p = t * -0.0295346078f + 0.142288084f;
  p = p * t - 0.24360115f;
  p = p * t + 0.139034894f;
  p = p * t - 0.0133136924f;
  p = p * t + 0.101343777f;
  p = p * t + 0.121551801f;
  p = p * t + 0.141187665f;
  p = p * t + 0.141043208f;
  const Vec<float> tail = bell * t * p;
  cdf = z < 0 ? tail : 1.0f - tail;
}

SMARTCS_INLINE void normal(Vec<double> z, Vec<double>& cdf, Vec<double>& bell) {
  for (int i = 0; i < kLanes<double>; ++i) {
    cdf[i] = 0.5 * ::erfc(-z[i] * 0.70710678118654752440);
    bell[i] = ::exp(-0.5 * z[i] * z[i]);
  }
}

template <class A>
SMARTCS_INLINE Vec<A> gelu(Vec<A> z) {
  Vec<A> cdf, bell;
  normal(z, cdf, bell);
  // -inf * 0 is NaN; the limit is 0.
  return cdf == A(0) ? cdf : z * cdf;
}

// GELU'(z)
template <class A>
SMARTCS_INLINE Vec<A> gelu_slope(Vec<A> z) {
  Vec<A> cdf, bell;
  normal(z, cdf, bell);
  return bell == A(0) ? cdf : cdf + z * bell * A(0.39894228040143267794);
}

}  // namespace smartcs::SMARTCS_ISA
