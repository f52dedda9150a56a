// SMART's noise and one step of its adversarial search: the kernels' arguments. Formulas: smartcs/ops/perturb.py.
// N rows, C columns, G groups. Pointers are to the table entry's storage type, statistics to its compute type.
#pragma once

#include "isa.h"

namespace smartcs {

struct PerturbNoise {
  int64_t columns;
  double std;
  uint64_t seed, stream;
  uint32_t first_row;  // the number of row 0
  void* noise;         // (N, C), written
};

enum class Update : int { mtdnn, projected, paper };
enum class Norm : int { inf, two, one };

struct PerturbStep {
  int64_t columns;
  const int32_t* cu_seqlens;  // (G + 1), or null: every row is a group
  Update update;
  Norm norm;
  double step_size, radius, norm_eps;
  const void *v, *g;  // (N, C)
  void* moved;        // (N, C), written
  void* statistics;   // (G, 3), written: cosine of moved and g, norm of moved, 1 if all finite
};

struct PerturbKernels {
  // `row` is room for one row of the compute type, rounded up to 64 columns.
  void (*noise[kStorageCount])(const PerturbNoise&, void* row, int64_t row_begin, int64_t row_end);
  void (*step[kStorageCount])(const PerturbStep&, int64_t group_begin, int64_t group_end);
};

SMARTCS_KERNELS(PerturbKernels, perturb_kernels)

}  // namespace smartcs
