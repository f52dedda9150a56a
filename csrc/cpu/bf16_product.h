// A block of rows times one panel, in registers: with vdpbf16ps where the file is compiled for it, else with the
// vectors of vec.h, each half of a pair widened to float32. The sums run in the order of the depth, so no result
// depends on how the work was cut.
#pragma once

#include "bf16_kernels.h"
#include "bf16_layout.h"
#include "vec.h"

namespace smartcs::SMARTCS_ISA {

#if defined(__AVX512BF16__)

// Six rows by four vectors of sums: 24 chains hide the latency, and ten loads feed 24 products.
inline constexpr int kTileRows = 6;

template <int kRows>
static void product_tile(const PanelProduct& p, int64_t row) {
  constexpr int kVectors = kPanel / 16;
  const uint16_t* a = p.a + row * p.a_stride;
  const uint16_t* b = p.panel;
  __m512 sum[kRows][kVectors];
  SMARTCS_UNROLL
  for (int i = 0; i < kRows; ++i) {
    SMARTCS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      sum[i][v] = p.bias == nullptr ? _mm512_setzero_ps() : _mm512_loadu_ps(p.bias + v * 16);
    }
  }
  for (int64_t k = 0; k < p.depth; k += 2, b += 2 * kPanel) {
    __m512bh pairs[kVectors];
    SMARTCS_UNROLL
    for (int v = 0; v < kVectors; ++v) std::memcpy(&pairs[v], b + v * 32, sizeof pairs[v]);
    SMARTCS_UNROLL
    for (int i = 0; i < kRows; ++i) {
      int32_t pair;
      std::memcpy(&pair, a + i * p.a_stride + k, sizeof pair);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      SMARTCS_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], x, pairs[v]);
    }
  }
  SMARTCS_UNROLL
  for (int i = 0; i < kRows; ++i) {
    SMARTCS_UNROLL
    for (int v = 0; v < kVectors; ++v) std::memcpy(p.c + (row + i) * p.c_stride + v * 16, &sum[i][v], sizeof sum[i][v]);
  }
}

#else

inline constexpr int kTileRows = 4;

template <int kRows>
static void product_tile(const PanelProduct& p, int64_t row) {
  constexpr int W = kLanes<float>, kVectors = 2;
  for (int64_t column = 0; column < kPanel; column += kVectors * W) {
    Vec<float> sum[kRows][kVectors] = {};
    for (int i = 0; p.bias != nullptr && i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) sum[i][v] = load(p.bias + column + v * W, Full{});
    }
    for (int64_t k = 0; k < p.depth; k += 2) {
      const uint16_t* a = p.a + row * p.a_stride + k;
      Vec<float> even[kVectors], odd[kVectors];
      SMARTCS_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        Vec<uint32_t> pairs;
        std::memcpy(&pairs, p.panel + k * kPanel + (column + v * W) * 2, sizeof pairs);
        const Vec<uint32_t> first = pairs << 16, second = pairs & 0xFFFF0000u;
        std::memcpy(&even[v], &first, sizeof first);
        std::memcpy(&odd[v], &second, sizeof second);
      }
      SMARTCS_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const float x = widen(bf16{a[i * p.a_stride]}), y = widen(bf16{a[i * p.a_stride + 1]});
        SMARTCS_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[i][v] = sum[i][v] + x * even[v] + y * odd[v];
      }
    }
    SMARTCS_UNROLL
    for (int i = 0; i < kRows; ++i) {
      SMARTCS_UNROLL
      for (int v = 0; v < kVectors; ++v) store(p.c + (row + i) * p.c_stride + column + v * W, sum[i][v], Full{});
    }
  }
}

#endif

template <int kRows = kTileRows - 1>
SMARTCS_INLINE void product_rest(const PanelProduct& p, int64_t row) {
  if constexpr (kRows > 0) {
    if (p.rows - row == kRows) return product_tile<kRows>(p, row);
    product_rest<kRows - 1>(p, row);
  }
}

static void product(const PanelProduct& p) {
  int64_t row = 0;
  for (; row + kTileRows <= p.rows; row += kTileRows) product_tile<kTileRows>(p, row);
  product_rest(p, row);
}

}  // namespace smartcs::SMARTCS_ISA
