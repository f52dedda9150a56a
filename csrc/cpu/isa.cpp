#include "isa.h"

#include <atomic>
#include <cstring>

namespace smartcs {
namespace {

const char* const kNames[] = {"baseline", "avx2", "avx512"};

bool compiled_in(Isa isa) {
  switch (isa) {
    case Isa::avx2:
#ifdef SMARTCS_HAVE_AVX2
      return true;
#else
      return false;
#endif
    case Isa::avx512:
#ifdef SMARTCS_HAVE_AVX512
      return true;
#else
      return false;
#endif
    default:
      return true;
  }
}

// __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
bool cpu_has(Isa isa) {
#if defined(__x86_64__) || defined(__i386__)
  switch (isa) {
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    case Isa::avx512:
      return cpu_has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    default:
      return true;
  }
#else
  return isa == Isa::baseline;
#endif
}

bool parse(const char* name, Isa& isa) {
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) {
      isa = static_cast<Isa>(i);
      return true;
    }
  }
  return false;
}

Isa best() {
  for (Isa isa : {Isa::avx512, Isa::avx2}) {
    if (compiled_in(isa) && cpu_has(isa)) return isa;
  }
  return Isa::baseline;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{best()};
  return isa;
}

}  // namespace

Isa active_isa() {
  return current().load(std::memory_order_relaxed);
}

const char* isa_name(Isa isa) {
  return kNames[static_cast<int>(isa)];
}

const char* set_active_isa(const char* name) {
  Isa isa;
  if (!parse(name, isa)) return "unknown instruction set (known: baseline, avx2, avx512)";
  if (!compiled_in(isa)) return "this instruction set was not compiled in";
  if (!cpu_has(isa)) return "this CPU does not have this instruction set";
  current().store(isa, std::memory_order_relaxed);
  return nullptr;
}

}  // namespace smartcs
