// Every kernel, for nvcc: what test_compiles.py compiles.
#include "adamw.cuh"
#include "perturb.cuh"
#include "symmetric_kl.cuh"

namespace smartcs::cuda {

template <class S>
void all(cudaStream_t stream) {
  symmetric_kl_forward<S>({}, stream);
  symmetric_kl_backward<S>({}, stream);
  perturb_noise<S>({}, stream);
  perturb_step<S>({}, stream);
}

void instances(cudaStream_t stream) {
  all<float>(stream);
  all<double>(stream);
  all<bf16>(stream);
  all<half>(stream);
  adamw_step<>({}, {}, {}, stream);
}

}  // namespace smartcs::cuda
