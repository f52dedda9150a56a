// Preloaded under ThreadSanitizer: tells it what GNU's OpenMP runtime, which is not instrumented, promises.
//
// A parallel region begins after everything its caller did before, and ends before anything its caller does next.
// libgomp sees to that with futexes that ThreadSanitizer does not know, so that it would report every region. Between
// the threads of a region nothing is promised here: what they do to each other is what it is to find. Suppressing
// libgomp instead would hide just that, for every frame of a region stands on one of libgomp's.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

namespace {

using Body = void (*)(void*);
using Parallel = void (*)(Body, void*, unsigned, unsigned);

struct Region {
  Body body;
  void* data;
  char begun, ended;  // their addresses are what ThreadSanitizer orders by
};

void in_thread(void* argument) {
  auto* region = static_cast<Region*>(argument);
  __tsan_acquire(&region->begun);
  region->body(region->data);
  __tsan_release(&region->ended);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void GOMP_parallel(Body body, void* data, unsigned threads,
                                                                     unsigned flags) {
  static const auto real = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{body, data, 0, 0};
  __tsan_release(&region.begun);
  real(in_thread, &region, threads, flags);
  __tsan_acquire(&region.ended);
}
