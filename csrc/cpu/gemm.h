// A small matrix product for operands that sit in cache, the inner engine of attention.
//
//   C[m, n] (+)= sum_k A[m, k] * B[k, n]
//
// B and C are row-major with a row length that is a multiple of the vector width (padded by the caller); A is
// read one scalar at a time with any strides, so A transposed costs nothing extra. C is held in registers,
// kRows x kColumns vectors at a time; the sum over k runs in order, so a result does not depend on how the
// work was cut.
#pragma once

#include "vec.h"

namespace smartcs::SMARTCS_ISA {

template <class A>
struct MatrixView {
  const A* data;
  int64_t row_stride;
  int64_t column_stride;
};

template <int kRows, int kColumns, class A>
SMARTCS_INLINE void gemm_tile(int64_t depth, const A* a, int64_t a_row, int64_t a_column, const A* b, int64_t ldb, A* c,
                              int64_t ldc, bool accumulate) {
  constexpr int W = kLanes<A>;
  Vec<A> sum[kRows][kColumns];
  SMARTCS_UNROLL
  for (int i = 0; i < kRows; ++i) {
    SMARTCS_UNROLL
    for (int v = 0; v < kColumns; ++v) sum[i][v] = accumulate ? load(c + i * ldc + v * W, Full{}) : Vec<A>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> row[kColumns];
    SMARTCS_UNROLL
    for (int v = 0; v < kColumns; ++v) row[v] = load(b + k * ldb + v * W, Full{});
    SMARTCS_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Vec<A> scalar = splat(a[i * a_row + k * a_column]);
      SMARTCS_UNROLL
      for (int v = 0; v < kColumns; ++v) sum[i][v] += scalar * row[v];
    }
  }
  SMARTCS_UNROLL
  for (int i = 0; i < kRows; ++i) {
    SMARTCS_UNROLL
    for (int v = 0; v < kColumns; ++v) store(c + i * ldc + v * W, sum[i][v], Full{});
  }
}

// Rows left over after the full tiles: one instantiation per remainder, chosen at run time.
template <int kRows, int kColumns, class A>
SMARTCS_INLINE void gemm_rows(int64_t rows, int64_t depth, const A* a, int64_t a_row, int64_t a_column, const A* b,
                              int64_t ldb, A* c, int64_t ldc, bool accumulate) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      gemm_tile<kRows, kColumns>(depth, a, a_row, a_column, b, ldb, c, ldc, accumulate);
    } else {
      gemm_rows<kRows - 1, kColumns>(rows, depth, a, a_row, a_column, b, ldb, c, ldc, accumulate);
    }
  }
}

template <int kColumns, class A>
static void gemm_panel(int64_t rows, int64_t depth, MatrixView<A> a, const A* b, int64_t ldb, A* c, int64_t ldc,
                       bool accumulate) {
  constexpr int kRows = 6;  // 6 x 4 accumulators fill AVX-512's 32 registers, 6 x 2 the 16 of the others
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    gemm_tile<kRows, kColumns>(depth, a.data + i * a.row_stride, a.row_stride, a.column_stride, b, ldb, c + i * ldc,
                               ldc, accumulate);
  }
  gemm_rows<kRows - 1, kColumns>(rows - i, depth, a.data + i * a.row_stride, a.row_stride, a.column_stride, b, ldb,
                                 c + i * ldc, ldc, accumulate);
}

template <class A>
static void gemm(int64_t rows, int64_t columns, int64_t depth, MatrixView<A> a, const A* b, int64_t ldb, A* c,
                 int64_t ldc, bool accumulate) {
  constexpr int W = kLanes<A>;
  constexpr int kWide = kVectorBytes == 64 ? 4 : 2;
  int64_t j = 0;
  for (; j + kWide * W <= columns; j += kWide * W) {
    gemm_panel<kWide>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
  }
  if constexpr (kWide == 4) {
    if (j + 2 * W <= columns) {
      gemm_panel<2>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
      j += 2 * W;
    }
  }
  if (j < columns) gemm_panel<1>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
}

}  // namespace smartcs::SMARTCS_ISA
