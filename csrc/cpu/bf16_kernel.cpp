// Around bf16 products: operands rounded, packed and transposed on their way in, bias and GELU on the way out.
#include "bf16_kernels.h"
#include "bf16_layout.h"
#include "bf16_product.h"
#include "gelu.h"
#include "layer_norm_row.h"

namespace smartcs::SMARTCS_ISA {
namespace {

constexpr int W = kLanes<float>;
// Pairs in kDepthStep numbers, and columns turned at a time: a square of 32-bit pairs.
constexpr int kSide = kDepthStep / 2;

SMARTCS_INLINE Vec<uint32_t> bits_of(const bf16* p, auto n) {
  return load_bits(p, n);
}
SMARTCS_INLINE Vec<uint32_t> bits_of(const float* p, auto n) {
  return rounded_bits(load(p, n));
}

// to[i][p] = from[p][i] for i < rows: 16 by 16 pairs.
SMARTCS_INLINE void turn(const uint32_t (&from)[kSide][kSide], uint32_t* to, int64_t stride, int64_t rows) {
#if defined(__AVX512F__)
  constexpr __mmask16 all = 0xFFFF;  // zero-masked: see multiply_wide in philox.h
  __m512i r[16], t[16];
  SMARTCS_UNROLL
  for (int p = 0; p < 16; ++p) std::memcpy(&r[p], from[p], sizeof r[p]);
  SMARTCS_UNROLL
  for (int p = 0; p < 16; p += 2) {
    t[p] = _mm512_maskz_unpacklo_epi32(all, r[p], r[p + 1]);
    t[p + 1] = _mm512_maskz_unpackhi_epi32(all, r[p], r[p + 1]);
  }
  // r[4 g + c], 128-bit lane l: rows 4 g to 4 g + 3 of column 4 l + c
  SMARTCS_UNROLL
  for (int p = 0; p < 16; p += 4) {
    r[p] = _mm512_maskz_unpacklo_epi64(0xFF, t[p], t[p + 2]);
    r[p + 1] = _mm512_maskz_unpackhi_epi64(0xFF, t[p], t[p + 2]);
    r[p + 2] = _mm512_maskz_unpacklo_epi64(0xFF, t[p + 1], t[p + 3]);
    r[p + 3] = _mm512_maskz_unpackhi_epi64(0xFF, t[p + 1], t[p + 3]);
  }
  SMARTCS_UNROLL
  for (int c = 0; c < 4; ++c) {
    const __m512i even = _mm512_maskz_shuffle_i32x4(all, r[c], r[c + 4], 0x88);
    const __m512i odd = _mm512_maskz_shuffle_i32x4(all, r[c], r[c + 4], 0xDD);
    const __m512i later_even = _mm512_maskz_shuffle_i32x4(all, r[c + 8], r[c + 12], 0x88);
    const __m512i later_odd = _mm512_maskz_shuffle_i32x4(all, r[c + 8], r[c + 12], 0xDD);
    t[c] = _mm512_maskz_shuffle_i32x4(all, even, later_even, 0x88);
    t[c + 4] = _mm512_maskz_shuffle_i32x4(all, odd, later_odd, 0x88);
    t[c + 8] = _mm512_maskz_shuffle_i32x4(all, even, later_even, 0xDD);
    t[c + 12] = _mm512_maskz_shuffle_i32x4(all, odd, later_odd, 0xDD);
  }
  SMARTCS_UNROLL
  for (int i = 0; i < 16; ++i) {
    if (i < rows) std::memcpy(to + i * stride, &t[i], sizeof t[i]);
  }
#else
  for (int i = 0; i < (rows < kSide ? rows : kSide); ++i) {
    for (int p = 0; p < kSide; ++p) to[i * stride + p] = from[p][i];
  }
#endif
}

void zero(uint16_t* p, int64_t count) {
  if (count > 0) ::memset(p, 0, static_cast<size_t>(count) * sizeof *p);
}

void round_rows(const Bf16Round& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = args.x + row * args.columns;
    uint16_t* low = args.low + row * args.stride;
    sweep<float>(args.columns, [&](int64_t j, auto n) { store(reinterpret_cast<bf16*>(low + j), load(x + j, n), n); });
    zero(low + args.columns, args.stride - args.columns);
  }
}

template <class S>
void pack(const Bf16Pack& args, int64_t begin, int64_t end) {
  const S* from = static_cast<const S*>(args.from);
  const int64_t C = args.columns;
  for (int64_t row = begin * kDepthStep; row < end * kDepthStep; row += 2) {
    const bool paired = row + 1 < args.depth;
    for (int64_t panel = 0; panel < panels(C); ++panel) {
      const int64_t first = panel * kPanel, count = C - first < kPanel ? C - first : kPanel;
      uint16_t* to = args.packed + panel * panel_elements(args.depth) + row * kPanel;
      if (count < kPanel || row >= args.depth) zero(to, 2 * kPanel);
      if (row >= args.depth) continue;
      const S* even = from + row * C + first;
      sweep<float>(count, [&](int64_t j, auto n) {
        __builtin_prefetch(even + j + 2 * C);
        __builtin_prefetch(even + j + 3 * C);
        Vec<uint32_t> pairs = bits_of(even + j, n);
        if (paired) pairs |= bits_of(even + C + j, n) << 16;
        if constexpr (__is_same(decltype(n), Full)) {
          std::memcpy(to + 2 * j, &pairs, sizeof pairs);
        } else {
          std::memcpy(to + 2 * j, &pairs, static_cast<size_t>(n) * sizeof(uint32_t));
        }
      });
    }
  }
}

void pack_turned(const Bf16Pack& args, int64_t begin, int64_t end) {
  const float* from = static_cast<const float*>(args.from);
  const int64_t D = args.depth;
  uint32_t square[kSide][kSide];  // [column][pair]
  for (int64_t panel = begin; panel < end; ++panel) {
    uint16_t* to = args.packed + panel * panel_elements(D);
    for (int64_t k = 0; k < D; k += kDepthStep, to += kDepthStep * kPanel) {
      const int64_t depth = D - k < kDepthStep ? D - k : kDepthStep;
      for (int64_t column = 0; column < kPanel; column += kSide) {
        for (int64_t i = 0; i < kSide; ++i) {
          const int64_t n = panel * kPanel + column + i;
          bf16* row = reinterpret_cast<bf16*>(square[i]);
          if (n >= args.columns || depth < kDepthStep) ::memset(row, 0, sizeof square[i]);
          if (n >= args.columns) continue;
          sweep<float>(depth, [&](int64_t j, auto count) { store(row + j, load(from + n * D + k + j, count), count); });
        }
        turn(square, reinterpret_cast<uint32_t*>(to) + column, kPanel, kSide);
      }
    }
  }
}

// Columns of a gradient at a time: its rounded block of rows stays in the first-level cache until it is turned.
constexpr int64_t kStrip = 256;

// One row of a strip: rounded into `low` (and `copy`), added to `sums`.
template <class S>
SMARTCS_INLINE void gradient_row(const S* grad_y, const bf16* z, int64_t count, bf16* low, bf16* copy, float* sums,
                                 int64_t ahead) {
  sweep<float>(count, [&](int64_t j, auto n) {
    __builtin_prefetch(grad_y + j + ahead);
    Vec<float> d = load(grad_y + j, n);
    if (z != nullptr) d *= gelu_slope<float>(load(z + j, n));
    if (sums != nullptr) accumulate<float>(sums, j, d, n);
    if (low == nullptr && copy == nullptr) return;
    const Vec<uint32_t> bits = rounded_bits(d);
    if (low != nullptr) store_bits(low + j, bits, n);
    if (copy != nullptr) store_bits(copy + j, bits, n);
  });
}

// to[i][r] = from[r][i] for the kDepthStep rows and `count` columns of a strip.
SMARTCS_INLINE void turn_strip(const bf16 (&from)[kDepthStep][kStrip], int64_t count, uint16_t* to, int64_t stride) {
  uint32_t square[kSide][kSide];  // [pair][column]
  for (int64_t column = 0; column < count; column += kSide) {
    SMARTCS_UNROLL
    for (int p = 0; p < kSide; ++p) {
      for (int v = 0; v < kSide; v += W) {
        const Vec<uint32_t> pairs =
            load_bits(&from[2 * p][column + v], Full{}) | load_bits(&from[2 * p + 1][column + v], Full{}) << 16;
        std::memcpy(&square[p][v], &pairs, sizeof pairs);
      }
    }
    turn(square, reinterpret_cast<uint32_t*>(to + column * stride), stride / 2, count - column);
  }
}

template <class S>
void gradient(const Bf16Gradient& args, int64_t begin, int64_t end) {
  const int64_t C = args.columns, turned_stride = padded_depth(args.rows);
  const S* grad_y = static_cast<const S*>(args.grad_y);
  const bf16* z = reinterpret_cast<const bf16*>(args.z);
  bf16* low = reinterpret_cast<bf16*>(args.low);
  alignas(64) bf16 strip[kDepthStep][kStrip];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kDepthStep;
    const int64_t rows = args.rows - first < kDepthStep ? args.rows - first : kDepthStep;
    for (int64_t column = 0; column < C; column += kStrip) {
      const int64_t count = C - column < kStrip ? C - column : kStrip;
      float* sums = args.partials == nullptr ? nullptr : args.partials + block * C + column;
      if (sums != nullptr) ::memset(sums, 0, static_cast<size_t>(count) * sizeof *sums);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = (first + r) * C + column;
        gradient_row(grad_y + at, z == nullptr ? nullptr : z + at, count,
                     low == nullptr ? nullptr : low + (first + r) * args.low_stride + column,
                     args.turned == nullptr ? nullptr : strip[r], sums, 4 * C);
      }
      if (args.turned == nullptr) continue;
      for (int64_t r = rows; r < kDepthStep; ++r) zero(&strip[r][0].bits, kStrip);
      turn_strip(strip, count, args.turned + column * turned_stride + first, turned_stride);
    }
    for (int64_t r = 0; low != nullptr && r < rows; ++r) {
      zero(args.low + (first + r) * args.low_stride + C, args.low_stride - C);
    }
  }
}

template <class S>
void store_product(const ProductStore& args) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const float* c = args.c + row * kPanel;
    S* y = static_cast<S*>(args.y) + row * args.stride;
    uint16_t* z_row = args.z == nullptr ? nullptr : args.z + row * args.stride;
    sweep<float>(args.columns, [&](int64_t j, auto n) {
      const Vec<float> z = load(c + j, n);
      if (z_row != nullptr) store(reinterpret_cast<bf16*>(z_row + j), z, n);
      store(y + j, args.gelu ? gelu<float>(z) : z, n);
    });
  }
}

}  // namespace

const Bf16Kernels bf16_kernels = {
    product,     {store_product<float>, store_product<bf16>}, round_rows,          {pack<float>, pack<bf16>},
    pack_turned, {gradient<float>, gradient<bf16>},           sum_partials<float>,
};

}  // namespace smartcs::SMARTCS_ISA
