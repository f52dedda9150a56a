// AdamW with the anchor's momentum: the kernels' arguments. Formulas: smartcs/ops/adamw.py. There is no bf16 entry: the
// optimizer's numbers are float32 or float64.
#pragma once

#include "isa.h"

namespace smartcs {

// One tensor. The scalars are worked out in double and rounded once.
struct AdamWTensor {
  void* theta;
  void *exp_avg, *exp_avg_sq;
  void* anchor;           // or null
  double grad_scale = 1;  // of the clipped norm
  double decay = 1;       // 1 - lr * weight_decay
  double beta1, beta2;    //
  double step_size;       // lr / (1 - beta1^t)
  double inverse_root;    // 1 / sqrt(1 - beta2^t)
  double eps;             //
  double anchor_weight;   // 1 - momentum
};

// Elements are counted from the tensor's first.
struct AdamWKernels {
  // grad points to the gradient of element `begin`.
  void (*update[2])(const AdamWTensor&, const void* grad, int64_t begin, int64_t end);
  // What is left of it without moments and gradient: decay, and the anchor.
  void (*idle[2])(const AdamWTensor&, int64_t begin, int64_t end);
  // The anchor alone.
  void (*follow[2])(const AdamWTensor&, int64_t begin, int64_t end);
  // The sum of the squares, in float64.
  double (*squares[2])(const void* values, int64_t count);
  // sum = first + second
  void (*add[2])(const void* first, const void* second, void* sum, int64_t count);
};

SMARTCS_KERNELS(AdamWKernels, adamw_kernels)

}  // namespace smartcs
