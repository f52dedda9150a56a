// Which instruction set the kernels run on: several are compiled in, one is chosen when the process starts.
//
// A kernel file (csrc/cpu/*_kernel.cpp) is compiled once per instruction set with SMARTCS_ISA naming the
// namespace it fills with a table of function pointers. SMARTCS_KERNELS(Table, name) declares those tables
// and a function `name()` that returns the one to use. Free of torch headers, so that kernels compile in
// seconds.
#pragma once

#include <cstdint>

namespace smartcs {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

Isa active_isa();
const char* isa_name(Isa isa);
// Makes `name` the active set. Returns nullptr, or why it cannot run here (unknown, not compiled in, not in
// this CPU).
const char* set_active_isa(const char* name);

// Element types a kernel is instantiated for; the index into its function tables.
enum Storage : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2 };
inline constexpr int kStorageCount = 3;

// Dropout as every kernel receives it (see philox.h): an element is kept when its 32 random bits are >=
// threshold.
struct Dropout {
  uint32_t threshold = 0;   // round(p * 2^32), at least 1 where p > 0; 0 means no dropout
  double keep_scale = 1.0;  // 1 / (1 - p)
  uint64_t seed = 0;
  uint64_t stream = 0;
  uint32_t first_row = 0;  // the number of row 0
  bool active() const { return threshold != 0; }
};

}  // namespace smartcs

#ifdef SMARTCS_HAVE_AVX2
#define SMARTCS_IF_AVX2(code) code
#else
#define SMARTCS_IF_AVX2(code)
#endif
#ifdef SMARTCS_HAVE_AVX512
#define SMARTCS_IF_AVX512(code) code
#else
#define SMARTCS_IF_AVX512(code)
#endif

// Inside namespace smartcs.
#define SMARTCS_KERNELS(Table, name)                               \
  namespace baseline {                                             \
  extern const Table name;                                         \
  }                                                                \
  SMARTCS_IF_AVX2(namespace avx2 { extern const Table name; })     \
  SMARTCS_IF_AVX512(namespace avx512 { extern const Table name; }) \
  inline const Table& name() {                                     \
    switch (active_isa()) {                                        \
      SMARTCS_IF_AVX512(case Isa::avx512 : return avx512::name;)   \
      SMARTCS_IF_AVX2(case Isa::avx2 : return avx2::name;)         \
      default:                                                     \
        return baseline::name;                                     \
    }                                                              \
  }
