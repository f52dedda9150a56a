// csrc/cuda/philox.cuh and perturb.cuh under emulation, for ctypes.
#include "shim.h"
//
#include "perturb.cuh"

extern "C" {

// words: (rows, counters, 4)
const char* philox_words(uint64_t seed, uint64_t stream, int64_t rows, int64_t counters, int64_t* words) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t number = 0; number < counters; ++number) {
      const auto drawn = smartcs::cuda::philox(seed, stream, static_cast<uint32_t>(row), static_cast<uint32_t>(number));
      for (int w = 0; w < 4; ++w) *words++ = drawn.at[w];
    }
  }
  return nullptr;
}

int64_t philox_column(int64_t number) {
  return smartcs::cuda::column_of(number);
}

const char* perturb_noise(int64_t storage, int64_t rows, int64_t columns, double std, uint64_t seed, uint64_t stream,
                          const int64_t* counter_offset, void* noise) {
  const smartcs::cuda::PerturbNoise args{rows, columns, std, seed, stream, counter_offset, noise};
  return FOR_STORAGE(storage, perturb_noise, args);
}

const char* perturb_step(int64_t storage, int64_t rows, int64_t groups, int64_t columns, const int32_t* cu_seqlens,
                         int64_t update, int64_t norm, double step_size, double radius, double norm_eps, const void* v,
                         const void* g, void* moved, void* statistics) {
  const smartcs::cuda::PerturbStep args{rows,
                                        groups,
                                        columns,
                                        cu_seqlens,
                                        static_cast<smartcs::cuda::Update>(update),
                                        static_cast<smartcs::cuda::Norm>(norm),
                                        step_size,
                                        radius,
                                        norm_eps,
                                        v,
                                        g,
                                        moved,
                                        statistics};
  return FOR_STORAGE(storage, perturb_step, args);
}

}  // extern "C"
