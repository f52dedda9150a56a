// bf16 products and what surrounds them: the kernels' arguments. The layout of the packed operand: bf16_layout.h.
// Numbers in bf16 are passed as their bits.
#pragma once

#include <cstdint>

#include "isa.h"

namespace smartcs {

// C (rows, kPanel) = bias + A (rows, depth) times one panel: bf16 operands, float32 sums. A is row-major and zero
// between depth and padded_depth(depth).
struct PanelProduct {
  int64_t rows, depth;
  const uint16_t* a;
  int64_t a_stride;
  const uint16_t* panel;
  const float* bias;  // (kPanel) or null
  float* c;           // written
  int64_t c_stride;
};

using ProductFunction = void (*)(const PanelProduct&);

// What happens to a product c on its way to memory: y = c or GELU(c).
struct ProductStore {
  int64_t rows, columns;  // at most kPanel columns
  const float* c;         // (rows, kPanel)
  bool gelu;
  uint16_t* z;     // c in bf16, or null, written
  void* y;         // written
  int64_t stride;  // of y and z
};

// x (rows, columns) in float32, rounded to bf16; zero between columns and stride.
struct Bf16Round {
  int64_t columns;
  const float* x;
  uint16_t* low;  // (rows, stride), written
  int64_t stride;
};

// A matrix into the packed layout.
struct Bf16Pack {
  int64_t depth, columns;
  const void* from;
  uint16_t* packed;  // written
};

// dY, the gradient of a product's result, on its way into the products of the backward pass:
// d = dY, or dY GELU'(z), in float32; then rounded.
struct Bf16Gradient {
  int64_t rows, columns;
  const void* grad_y;  // (rows, columns)
  const uint16_t* z;   // (rows, columns) bf16, or null
  uint16_t* low;       // d (rows, low_stride) or null, written; zero between columns and low_stride
  int64_t low_stride;
  uint16_t* turned;  // d^T (columns, padded_depth(rows)) or null, written; zero between rows and padded_depth(rows)
  float* partials;   // (blocks, columns) or null, written: the sums of the rows of each block
};

// Tables are indexed by whether the varying operand is bf16 (else float32): `y`, `from`, `grad_y`.
struct Bf16Kernels {
  ProductFunction product;
  void (*store[2])(const ProductStore&);
  void (*round)(const Bf16Round&, int64_t row_begin, int64_t row_end);
  // from is (depth, columns); a block is kDepthStep rows.
  void (*pack[2])(const Bf16Pack&, int64_t block_begin, int64_t block_end);
  // from is (columns, depth) in float32; a block is a panel.
  void (*pack_turned)(const Bf16Pack&, int64_t panel_begin, int64_t panel_end);
  // A block is kDepthStep rows.
  void (*gradient[2])(const Bf16Gradient&, int64_t block_begin, int64_t block_end);
  void (*sum_partials)(const void* partials, int64_t count, int64_t columns, void* total, int64_t begin, int64_t end);
};

SMARTCS_KERNELS(Bf16Kernels, bf16_kernels)
#ifdef SMARTCS_HAVE_AVX512_BF16
namespace avx512_bf16 {
extern const Bf16Kernels bf16_kernels;
}
#endif

}  // namespace smartcs
