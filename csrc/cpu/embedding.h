// word + position + type gather, LayerNorm, dropout: the kernels' arguments. Formulas:
// smartcs/ops/embedding.py. T tokens, C columns. Pointers are to the table entry's storage type, statistics
// and partials to its compute type.
#pragma once

#include "isa.h"

namespace smartcs {

struct EmbeddingForward {
  int64_t columns;
  double eps;
  Dropout dropout;
  const int64_t *input_ids, *token_type_ids, *position_ids;  // (T)
  const void *word, *token_type, *position;                  // (rows, C)
  const void *weight, *bias;                                 // (C)
  const void* perturbation;                                  // (T, C) or null
  void* y;                                                   // (T, C), written
  void* h;                                                   // (T, C), written: the sum, before LayerNorm
  void *mean, *rstd;                                         // (T), written
};

struct EmbeddingBackward {
  int64_t rows, columns;
  Dropout dropout;
  const void* grad_y;  // (T, C)
  const void* h;       // (T, C)
  const void *mean, *rstd;
  const void* weight;  // (C)
  void* grad_h;        // (T, C), written
  void* partials;      // (2, partial sums, C): weight, bias, written; null when not wanted
};

struct EmbeddingKernels {
  void (*forward[kStorageCount])(const EmbeddingForward&, void* keep, int64_t row_begin, int64_t row_end);
  void (*backward[kStorageCount])(const EmbeddingBackward&, void* keep, int64_t partial_begin, int64_t partial_end);
  // table[ids[t]] += rows[t] for columns [begin, end) of every token: threads split the columns, so that no
  // two write the same element and the order of summation is the batch's.
  void (*scatter_add[kStorageCount])(const void* rows, const int64_t* ids, int64_t tokens, int64_t columns, void* table,
                                     int64_t begin, int64_t end);
  void (*sum_partials[kStorageCount])(const void* partials, int64_t count, int64_t columns, void* total, int64_t begin,
                                      int64_t end);
  int64_t rows_per_partial;
};

SMARTCS_KERNELS(EmbeddingKernels, embedding_kernels)

}  // namespace smartcs
