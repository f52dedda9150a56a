#include "bf16_rate.h"

#include <immintrin.h>
#include <time.h>

namespace smartcs::avx512_bf16 {
namespace {

constexpr int kChains = 24;
constexpr int kSteps = 1000;

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Seconds for kSteps x kChains instructions. The barrier keeps every sum in a register and the loop in place.
template <class Step>
double seconds(Step step) {
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_setzero_ps();
  const double start = now();
  for (int k = 0; k < kSteps; ++k) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      sums[i] = step(sums[i]);
      __asm__ volatile("" : "+v"(sums[i]));
    }
  }
  return now() - start;
}

}  // namespace

double bf16_rate_over_float32() {
  const __m512 zero = _mm512_setzero_ps();
  const __m512bh pairs = (__m512bh)_mm512_setzero_si512();
  double fma = 1, dot = 1;
  // The least of many, alternately: the clock changes, and other work interrupts.
  for (int repeat = 0; repeat < 40; ++repeat) {
    const double a = seconds([&](__m512 sum) { return _mm512_fmadd_ps(zero, zero, sum); });
    const double b = seconds([&](__m512 sum) { return _mm512_dpbf16_ps(sum, pairs, pairs); });
    if (a < fma) fma = a;
    if (b < dot) dot = b;
  }
  return 2 * fma / dot;
}

}  // namespace smartcs::avx512_bf16
