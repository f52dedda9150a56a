// The counter-based generator Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// smartcs/ops/random.py is the specification, which csrc/cpu/philox.h follows too, bit for bit: in blocks of 64
// columns, column 64 b + 16 w + l of a row is word w of
//   counter = (16 b + l, row, low(stream), high(stream)),  key = (low(seed), high(seed)).
#pragma once

#include "common.cuh"

namespace smartcs::cuda {

struct Words {
  uint32_t at[4];
};

// The four words of counter (number, row) of a stream.
__device__ __forceinline__ Words philox(uint64_t seed, uint64_t stream, uint32_t row, uint32_t number) {
  uint32_t c0 = number, c1 = row, c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  SMARTCS_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t product1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Where the random numbers of a launch are counted from: its stream, modulo 2^64, and its first row, modulo 2^32.
struct Counters {
  uint64_t stream;
  uint32_t row;
};

// Read by the kernel, so that a captured CUDA graph draws other numbers at every replay.
__device__ __forceinline__ Counters counted(uint64_t stream, const int64_t* offset) {
  if (offset == nullptr) return {stream, 0};
  return {stream + static_cast<uint64_t>(offset[0]), static_cast<uint32_t>(offset[1])};
}

// The column of word 0 of a counter; those of words 1 to 3 are 16, 32 and 48 further.
__device__ __forceinline__ int64_t column_of(int64_t number) {
  return number / 16 * 64 + number % 16;
}

}  // namespace smartcs::cuda
