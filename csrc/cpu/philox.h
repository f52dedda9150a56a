// The counter-based generator Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011).
//
// Element (row, column) of a random matrix is a pure function of (seed, stream, row, column), whatever the
// thread count, the instruction set or the matrix width. In blocks of 64 columns, column 64 b + 16 w + l is
// word w of
//   counter = (16 b + l, row, low(stream), high(stream)),  key = (low(seed), high(seed)),
// so that 16 counters side by side yield 64 neighbouring columns without a shuffle. smartcs/ops/random.py is
// the specification; the tests hold the two bit-equal.
#pragma once

#include "isa.h"
#include "vec.h"

namespace smartcs::SMARTCS_ISA {

// a * m as 64-bit products, split into high and low halves.
SMARTCS_INLINE void multiply_wide(Vec<uint32_t> a, uint32_t m, Vec<uint32_t>& high, Vec<uint32_t>& low) {
  typedef Vec<uint64_t> Wide;
  Wide even, odd;
  std::memcpy(&odd, &a, sizeof odd);
  odd = odd >> 32;
#if defined(__AVX512F__)
  const __m512i factor = _mm512_set1_epi64(m);
  // The zero-masked form: GCC 12 warns about an uninitialised operand inside its own header for the plain
  // one.
  even = (Wide)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, factor);
  odd = (Wide)_mm512_maskz_mul_epu32(0xFF, (__m512i)odd, factor);
#elif defined(__AVX2__)
  const __m256i factor = _mm256_set1_epi64x(m);
  even = (Wide)_mm256_mul_epu32((__m256i)a, factor);
  odd = (Wide)_mm256_mul_epu32((__m256i)odd, factor);
#elif defined(__SSE2__)
  const __m128i factor = _mm_set1_epi64x(m);
  even = (Wide)_mm_mul_epu32((__m128i)a, factor);
  odd = (Wide)_mm_mul_epu32((__m128i)odd, factor);
#else
  std::memcpy(&even, &a, sizeof even);
  even = (even & 0xFFFFFFFFu) * m;
  odd = odd * m;
#endif
  const Wide low_wide = (even & 0xFFFFFFFFu) | (odd << 32);
  const Wide high_wide = (even >> 32) | (odd & 0xFFFFFFFF00000000u);
  std::memcpy(&low, &low_wide, sizeof low);
  std::memcpy(&high, &high_wide, sizeof high);
}

SMARTCS_INLINE void philox(Vec<uint32_t> (&c)[4], uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  SMARTCS_UNROLL
  for (int round = 0; round < 10; ++round) {
    Vec<uint32_t> high0, low0, high1, low1;
    multiply_wide(c[0], 0xD2511F53u, high0, low0);
    multiply_wide(c[2], 0xCD9E8D57u, high1, low1);
    c[0] = high1 ^ c[1] ^ k0;
    c[2] = high0 ^ c[3] ^ k1;
    c[1] = low1;
    c[3] = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Calls use(first, words) for groups of columns of one row: lane i of words[w] belongs to column first + 16 w + i.
// Columns come in blocks of 64, so the last block may reach beyond `columns`.
template <class F>
SMARTCS_INLINE void philox_row(uint64_t seed, uint64_t stream, int64_t row, int64_t columns, F&& use) {
  constexpr int kWidth = kLanes<uint32_t>;
  Vec<uint32_t> lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = static_cast<uint32_t>(i);
  for (int64_t block = 0; block * 64 < columns; ++block) {
    for (int first = 0; first < 16; first += kWidth) {
      Vec<uint32_t> c[4];
      c[0] = lane + static_cast<uint32_t>(block * 16 + first);
      c[1] = splat(static_cast<uint32_t>(row));
      c[2] = splat(static_cast<uint32_t>(stream));
      c[3] = splat(static_cast<uint32_t>(stream >> 32));
      philox(c, seed);
      use(block * 64 + first, c);
    }
  }
}

// keep[j] for columns [0, columns) of one row: keep_scale where kept, 0 where dropped. `keep` has room for
// `columns` rounded up to 64.
template <class A>
SMARTCS_INLINE void fill_keep(const Dropout& dropout, int64_t row, int64_t columns, A* keep) {
  const A scale = static_cast<A>(dropout.keep_scale);
  row += dropout.first_row;
  philox_row(dropout.seed, dropout.stream, row, columns, [&](int64_t first, const Vec<uint32_t>(&words)[4]) {
    SMARTCS_UNROLL
    for (int word = 0; word < 4; ++word) {
      A* out = keep + first + word * 16;
      if constexpr (sizeof(A) == 4) {
        store(out, words[word] >= dropout.threshold ? splat(scale) : Vec<A>{}, Full{});
      } else {
        for (int i = 0; i < kLanes<uint32_t>; ++i) out[i] = words[word][i] >= dropout.threshold ? scale : A(0);
      }
    }
  });
}

}  // namespace smartcs::SMARTCS_ISA
