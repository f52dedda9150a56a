// csrc/cuda/symmetric_kl.cuh under emulation, for ctypes.
#include "shim.h"
//
#include "symmetric_kl.cuh"

extern "C" {

const char* symmetric_kl_fwd(int64_t storage, int64_t rows, int64_t classes, bool bernoulli, const void* a,
                             const void* b, void* loss) {
  const smartcs::cuda::SymmetricKlForward args{rows, classes, bernoulli, a, b, loss};
  return FOR_STORAGE(storage, symmetric_kl_forward, args);
}

const char* symmetric_kl_bwd(int64_t storage, int64_t rows, int64_t classes, bool bernoulli, bool detach_targets,
                             const void* grad_loss, const void* a, const void* b, void* grad_a, void* grad_b) {
  const smartcs::cuda::SymmetricKlBackward args{rows, classes, bernoulli, detach_targets, grad_loss,
                                                a,    b,       grad_a,    grad_b};
  return FOR_STORAGE(storage, symmetric_kl_backward, args);
}

}  // extern "C"
