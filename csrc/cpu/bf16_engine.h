// Which instructions multiply bf16 matrices: probed once per process, lowered by tests.
#pragma once

#include <string>

#include "bf16_kernels.h"

namespace smartcs {

inline constexpr int64_t kMaxRowUnit = 32;

struct Bf16Engine {
  const Bf16Kernels* kernels;
  ProductFunction product;
  // Rows are handed out in multiples of this. So few that what is done to a product finds it in the first-level cache,
  // and that its stores spread among the next one's arithmetic.
  int64_t row_unit;
};

Bf16Engine bf16_engine();

// "amx" or "avx512_bf16": what works here and beats float32. Else why there is nothing, beginning with "none: ".
std::string bf16_products();

// "amx", "avx512_bf16", "portable", "amx_emulated" or "auto". Returns nullptr, or why it cannot run here.
const char* set_bf16_products(const char* name);

}  // namespace smartcs
