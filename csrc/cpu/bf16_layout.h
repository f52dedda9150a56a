// The packed layout of the right operand of a bf16 product, the same for every instruction set.
//
// A matrix B of `depth` rows (summed over) and `columns` columns is cut into panels of kPanel columns. In a panel the
// rows go in pairs, the two numbers of a pair side by side: 32 bits are what one lane of vdpbf16ps multiplies and adds,
// and 16 pairs of 16 columns are a tile of AMX.
//
//   [ceil(columns / kPanel)][ceil32(depth) / 2][kPanel][2]
//
// element (k, n) lies in panel n / kPanel at pair k / 2, column n % kPanel, half k % 2; what lies outside B is zero.
// For y = x W^T, B is W^T; for dx = dy W it is W; for dW = dy^T x it is x.
#pragma once

#include <cstdint>

namespace smartcs {

inline constexpr int64_t kPanel = 64;
// The depth of a tile of AMX: operands are padded with zeros to a multiple of it.
inline constexpr int64_t kDepthStep = 32;

constexpr int64_t padded_depth(int64_t depth) {
  return (depth + kDepthStep - 1) / kDepthStep * kDepthStep;
}

constexpr int64_t panels(int64_t columns) {
  return (columns + kPanel - 1) / kPanel;
}

constexpr int64_t panel_elements(int64_t depth) {
  return padded_depth(depth) * kPanel;
}

constexpr int64_t packed_elements(int64_t depth, int64_t columns) {
  return panels(columns) * panel_elements(depth);
}

}  // namespace smartcs
