// csrc/cuda/adamw.cuh under emulation, for ctypes.
#include "shim.h"
//
#include "adamw.cuh"

extern "C" {

size_t adamw_tensor_bytes() {
  return sizeof(smartcs::cuda::AdamWTensor);
}

int64_t adamw_chunk() {
  return smartcs::cuda::kAdamWChunk;
}

const char* adamw_step(int64_t tensor_count, int64_t chunk_count, const void* tensors, const void* chunks,
                       const void* numbers, const double* anchor_weight, bool measured, double max_grad_norm,
                       double* partial_sums, void* scalars, double* clip) {
  using namespace smartcs::cuda;
  const AdamWStep args{tensor_count,
                       chunk_count,
                       static_cast<const AdamWTensor*>(tensors),
                       static_cast<const AdamWChunk*>(chunks),
                       static_cast<const AdamWNumbers*>(numbers),
                       anchor_weight,
                       measured,
                       max_grad_norm,
                       partial_sums,
                       static_cast<AdamWScalars*>(scalars),
                       clip};
  return emulation::reported([&] { smartcs::cuda::adamw_step(args, 0); });
}

}  // extern "C"
