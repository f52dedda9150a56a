// The number types and functions of CUDA that device code uses, for the host. Part of emulation.h.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  _Float16 value;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// To nearest, ties to even; NaN becomes CUDA's.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(__half x) {
  return static_cast<float>(x.value);
}
inline __half __float2half_rn(float x) {
  return {static_cast<_Float16>(x)};
}

// sin and cos of pi x, exact where they are simple: rounded from double, so more exact than a GPU's.
inline void sincospif(float x, float* sine, float* cosine) {
  const double quarters = nearbyint(2.0 * x), rest = (x - quarters / 2) * 3.14159265358979323846;
  const double s = sin(rest), c = cos(rest);
  const int quadrant = static_cast<int>(static_cast<int64_t>(quarters) & 3);
  *sine = static_cast<float>(quadrant == 0 ? s : quadrant == 1 ? c : quadrant == 2 ? -s : -c);
  *cosine = static_cast<float>(quadrant == 0 ? c : quadrant == 1 ? -s : quadrant == 2 ? -c : s);
}
