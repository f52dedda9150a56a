// Kernels with one mistake each: a block of 64 threads turns the order of 64 numbers round, by way of shared memory.
#include "shim.h"
//
#include "common.cuh"

using emulation::Error;

namespace {

enum Fault {
  kNone,
  kMissingBarrier,
  kMissingSecondBarrier,
  kTwoWriters,
  kNeverWritten,
  kBeyondShared,
  kDivergentBarrier,
  kTwoBarriers,
  kDivergentShuffle,
  kLeftEarly,
  kLaneOutsideMask,
  kNullPointer,
};

struct Arguments {
  int* numbers;
};

template <Fault kFault>
void kernel(Arguments args) {
  SMARTCS_SHARED(int, room, 64);
  const int t = static_cast<int>(threadIdx.x);
  if (kFault == kLeftEarly && t == 5) return;
  for (int round = 0; round < (kFault == kDivergentBarrier ? 1 : 3); ++round) {
    if (kFault != kNeverWritten || t != 7) room[kFault == kTwoWriters ? t / 2 : t] = args.numbers[t];
    if (kFault == kTwoBarriers && t < 32) {
      __syncthreads();
    } else if (kFault != kMissingBarrier) {
      __syncthreads();
    }
    args.numbers[t] = room[kFault == kBeyondShared ? t + 1 : 63 - t];
    if (kFault != kMissingSecondBarrier && (kFault != kDivergentBarrier || t != 3)) __syncthreads();
  }
  int sum = 1;
  const unsigned mask = kFault == kLaneOutsideMask ? 0x7FFFFFFFu : 0xFFFFFFFFu;
  for (int offset = 16; offset > 0; offset /= 2) {
    if (kFault != kDivergentShuffle || t != 40) sum += __shfl_xor_sync(mask, sum, offset);
  }
  if (sum != 32 && kFault != kDivergentShuffle) throw Error("shuffles do not add up");
  if (kFault == kNullPointer && t == 11) *static_cast<volatile int*>(nullptr) = 1;
}

template <Fault kFault>
const char* run() {
  return emulation::reported([] {
    int numbers[64];
    for (int i = 0; i < 64; ++i) numbers[i] = i;
    smartcs::cuda::launch(kernel<kFault>, 1, 64, 0, Arguments{numbers});
    for (int i = 0; i < 64; ++i) {
      if (numbers[i] != 63 - i) throw Error("wrong result");
    }
  });
}

}  // namespace

extern "C" {
const char* right() {
  return run<kNone>();
}
const char* missing_barrier() {
  return run<kMissingBarrier>();
}
const char* missing_second_barrier() {
  return run<kMissingSecondBarrier>();
}
const char* two_writers() {
  return run<kTwoWriters>();
}
const char* never_written() {
  return run<kNeverWritten>();
}
const char* beyond_shared() {
  return run<kBeyondShared>();
}
const char* divergent_barrier() {
  return run<kDivergentBarrier>();
}
const char* two_barriers() {
  return run<kTwoBarriers>();
}
const char* divergent_shuffle() {
  return run<kDivergentShuffle>();
}
const char* left_early() {
  return run<kLeftEarly>();
}
const char* lane_outside_mask() {
  return run<kLaneOutsideMask>();
}
const char* null_pointer() {
  return run<kNullPointer>();
}
}  // extern "C"
