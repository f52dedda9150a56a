// Symmetrised KL divergence from logits: the kernels' arguments. Formulas: smartcs/ops/symmetric_kl.py.
// N rows, K classes. Pointers are to the table entry's storage type, losses to its compute type.
#pragma once

#include "isa.h"

namespace smartcs {

struct SymmetricKlForward {
  int64_t classes;
  bool bernoulli;     // every element is a binary logit of its own; K is 1
  const void *a, *b;  // (N, K)
  void* loss;         // (N), written
};

struct SymmetricKlBackward {
  int64_t classes;
  bool bernoulli;
  bool detach_targets;
  const void* grad_loss;  // (N), compute type
  const void *a, *b;      // (N, K)
  void *grad_a, *grad_b;  // (N, K), written; null when not wanted
};

struct SymmetricKlKernels {
  void (*forward[kStorageCount])(const SymmetricKlForward&, int64_t row_begin, int64_t row_end);
  void (*backward[kStorageCount])(const SymmetricKlBackward&, int64_t row_begin, int64_t row_end);
};

SMARTCS_KERNELS(SymmetricKlKernels, symmetric_kl_kernels)

}  // namespace smartcs
