// bias + dropout + residual + LayerNorm: the kernels' arguments. Formulas: smartcs/ops/add_layer_norm.py.
// N rows, C columns. Pointers are to the table entry's storage type, statistics and partials to its compute
// type.
#pragma once

#include "isa.h"

namespace smartcs {

struct AddLayerNormForward {
  int64_t columns;
  double eps;
  Dropout dropout;
  const void* x;           // (N, C)
  const void* input_bias;  // (C) or null
  const void* residual;    // (N, C)
  const void* weight;      // (C)
  const void* bias;        // (C)
  void* y;                 // (N, C), written
  void* h;                 // (N, C), written: what is normalised, kept for the backward pass
  void* mean;              // (N), written
  void* rstd;              // (N), written
};

struct AddLayerNormBackward {
  int64_t rows, columns;
  Dropout dropout;
  const void* grad_y;   // (N, C)
  const void* h;        // (N, C)
  const void* mean;     // (N)
  const void* rstd;     // (N)
  const void* weight;   // (C)
  void* grad_x;         // (N, C), written; null without dropout, where it equals grad_residual
  void* grad_residual;  // (N, C), written
  void* partials;       // (3, partial sums, C): weight, bias, input bias, written; null when not wanted
};

struct AddLayerNormKernels {
  void (*forward[kStorageCount])(const AddLayerNormForward&, void* keep, int64_t row_begin, int64_t row_end);
  void (*backward[kStorageCount])(const AddLayerNormBackward&, void* keep, int64_t partial_begin, int64_t partial_end);
  void (*sum_partials[kStorageCount])(const void* partials, int64_t count, int64_t columns, void* total, int64_t begin,
                                      int64_t end);
  int64_t rows_per_partial;
};

SMARTCS_KERNELS(AddLayerNormKernels, add_layer_norm_kernels)

}  // namespace smartcs
