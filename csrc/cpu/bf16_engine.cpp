#include "bf16_engine.h"

#include <atomic>
#include <cstring>
#include <string>

#include "bf16_amx.h"
#include "bf16_rate.h"

namespace smartcs {
namespace {

enum Choice : int { kAuto, kPortable, kAvx512, kAmx, kAmxEmulated };
const char* const kNames[] = {"auto", "portable", "avx512_bf16", "amx", "amx_emulated"};

std::atomic<Choice> chosen{kAuto};

const char* avx512_problem() {
#ifdef SMARTCS_HAVE_AVX512_BF16
  if (!__builtin_cpu_supports("avx512bf16")) return "this CPU has no AVX512_BF16";
  return active_isa() == Isa::avx512 ? nullptr : "the instruction set was lowered";
#else
  return "AVX512_BF16 was not compiled in";
#endif
}

const char* cached_amx_problem() {
  static const char* const problem = amx_problem();
  return problem;
}

// Intel's vdpbf16ps does half the operations of its float32 FMA, AMD's twice as many.
bool avx512_is_fast() {
#ifdef SMARTCS_HAVE_AVX512_BF16
  static const bool fast = avx512_bf16::bf16_rate_over_float32() > 1.2;
  return fast;
#else
  return false;
#endif
}

const char* problem_of(Choice choice) {
  switch (choice) {
    case kAmx: {
      // Its operands are prepared by AVX512_BF16's kernels: every CPU with AMX has it.
      const char* problem = avx512_problem();
      return problem != nullptr ? problem : cached_amx_problem();
    }
    case kAvx512:
      return avx512_problem();
    default:
      return nullptr;
  }
}

Choice best() {
  if (problem_of(kAmx) == nullptr) return kAmx;
  return avx512_problem() == nullptr && avx512_is_fast() ? kAvx512 : kPortable;
}

}  // namespace

std::string bf16_products() {
  const Choice wanted = chosen.load(std::memory_order_relaxed), choice = wanted == kAuto ? best() : wanted;
  if (choice == kAmx || choice == kAvx512) {
    const char* problem = problem_of(choice);  // the instruction set may have been lowered since
    return problem == nullptr ? kNames[choice] : std::string("none: ") + problem;
  }
  if (wanted != kAuto) return kNames[wanted];
  const char* avx512 = avx512_problem();
  if (avx512 != nullptr) return std::string("none: ") + avx512;
  return std::string("none: AVX512_BF16 is not faster than float32 on this CPU, and ") + cached_amx_problem();
}

const char* set_bf16_products(const char* name) {
  for (int i = 0; i <= kAmxEmulated; ++i) {
    if (std::strcmp(name, kNames[i]) != 0) continue;
    const char* problem = problem_of(static_cast<Choice>(i));
    if (problem == nullptr) chosen.store(static_cast<Choice>(i), std::memory_order_relaxed);
    return problem;
  }
  return "unknown (known: auto, portable, avx512_bf16, amx, amx_emulated)";
}

Bf16Engine bf16_engine() {
  Choice choice = chosen.load(std::memory_order_relaxed);
  if (choice == kAuto) choice = best();
  constexpr int64_t kAmxRows = 32, kRows = 24;
  static_assert(kAmxRows <= kMaxRowUnit && kRows <= kMaxRowUnit);
#ifdef SMARTCS_HAVE_AMX
  if (choice == kAmx && problem_of(choice) == nullptr) {
    return {&avx512_bf16::bf16_kernels, bf16_product_amx, kAmxRows};
  }
#endif
#ifdef SMARTCS_HAVE_AVX512_BF16
  if (choice == kAvx512 && avx512_problem() == nullptr) {
    return {&avx512_bf16::bf16_kernels, avx512_bf16::bf16_kernels.product, kRows};
  }
#endif
  const Bf16Kernels* kernels = &bf16_kernels();
  if (choice == kAmxEmulated) return {kernels, bf16_product_amx_emulated, kAmxRows};
  return {kernels, kernels->product, kRows};
}

}  // namespace smartcs
