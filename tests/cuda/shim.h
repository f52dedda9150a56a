// What the emulated libraries share: memory against guarded pages, the order of threads, errors as messages.
#pragma once

#include "emulation.h"

namespace emulation {

inline std::string last_error;

// Runs `body`; what went wrong, or null.
template <class F>
const char* reported(F body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    last_error = error.what();
    return last_error.c_str();
  }
}

constexpr size_t kPage = 4096;
inline size_t pages(size_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

}  // namespace emulation

extern "C" {

// `bytes` of memory between two pages that must not be touched, at the beginning or at the end of its own pages.
void* guarded_allocate(size_t bytes, bool at_end) {
  using namespace emulation;
  const size_t inner = pages(bytes);
  char* whole =
      static_cast<char*>(mmap(nullptr, inner + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(whole, kPage, PROT_NONE);
  mprotect(whole + kPage + inner, kPage, PROT_NONE);
  return whole + kPage + (at_end ? inner - bytes : 0);
}

void guarded_free(void* memory, size_t bytes) {
  using namespace emulation;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory) / kPage * kPage - kPage;
  munmap(reinterpret_cast<void*>(begin), pages(bytes) + 2 * kPage);
}

void set_schedule(unsigned seed) {
  emulation::machine().schedule = seed;
}

}  // extern "C"

// Calls function<S>(arguments) for the number type that `storage` names. Mutants are compiled for float alone.
#ifdef ONLY_FLOAT
#define FOR_STORAGE(storage, function, arguments) \
  (static_cast<void>(storage), emulation::reported([&] { smartcs::cuda::function<float>(arguments, 0); }))
#else
#define FOR_STORAGE(storage, function, arguments)                           \
  emulation::reported([&] {                                                 \
    using namespace smartcs::cuda;                                          \
    if (storage == 0) return smartcs::cuda::function<float>(arguments, 0);  \
    if (storage == 1) return smartcs::cuda::function<double>(arguments, 0); \
    if (storage == 2) return smartcs::cuda::function<bf16>(arguments, 0);   \
    return smartcs::cuda::function<half>(arguments, 0);                     \
  })
#endif
