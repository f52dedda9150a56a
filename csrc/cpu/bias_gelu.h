// bias + exact GELU: the kernels' arguments. Formulas: smartcs/ops/bias_gelu.py.
// N rows, C columns. Pointers are to the table entry's storage type, partials to its compute type.
#pragma once

#include "isa.h"

namespace smartcs {

struct BiasGeluForward {
  int64_t columns;
  const void* x;     // (N, C)
  const void* bias;  // (C) or null
  void* y;           // (N, C), written
};

struct BiasGeluBackward {
  int64_t rows, columns;
  const void* grad_y;  // (N, C)
  const void* x;       // (N, C)
  const void* bias;    // (C) or null
  void* grad_x;        // (N, C), written
  void* partials;      // (partial sums, C), written; null when the bias gradient is not wanted
};

struct BiasGeluKernels {
  void (*forward[kStorageCount])(const BiasGeluForward&, int64_t row_begin, int64_t row_end);
  void (*backward[kStorageCount])(const BiasGeluBackward&, int64_t partial_begin, int64_t partial_end);
  void (*sum_partials[kStorageCount])(const void* partials, int64_t count, int64_t columns, void* total, int64_t begin,
                                      int64_t end);
  int64_t rows_per_partial;
};

SMARTCS_KERNELS(BiasGeluKernels, bias_gelu_kernels)

}  // namespace smartcs
