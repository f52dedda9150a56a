// How much faster vdpbf16ps is than float32's FMA.
#pragma once

namespace smartcs::avx512_bf16 {

// Operations per second of the one over the other, from registers, in about a millisecond.
double bf16_rate_over_float32();

}  // namespace smartcs::avx512_bf16
