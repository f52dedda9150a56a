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

// tensors: rows of the table; numbers: (count, 5); table: 10 times the tensors that a launch holds and its groups, or 0
// for as many as on a GPU.
const char* adamw_step(int64_t table, int64_t count, const void* tensors, const double* numbers, const double* schedule,
                       double anchor_weight, bool measured, double max_grad_norm, int64_t chunk_count,
                       double* partial_sums, void* scalars, double* norm, double* clip) {
  using namespace smartcs::cuda;
  const AdamWStep args{
      schedule, anchor_weight, measured, max_grad_norm, chunk_count, partial_sums, static_cast<AdamWScalars*>(scalars),
      norm,     clip};
  const auto* first = static_cast<const AdamWTensor*>(tensors);
  const auto* own = reinterpret_cast<const AdamWNumbers*>(numbers);
  const std::vector<AdamWTensor> rows(first, first + count);
  const std::vector<AdamWNumbers> groups(own, own + count);
  return emulation::reported([&] {
    if (table == 0) return smartcs::cuda::adamw_step(args, rows, groups, 0);
    if (table == 11) return smartcs::cuda::adamw_step<1, 1>(args, rows, groups, 0);
    if (table == 41) return smartcs::cuda::adamw_step<4, 1>(args, rows, groups, 0);
    if (table == 32) return smartcs::cuda::adamw_step<3, 2>(args, rows, groups, 0);
    throw emulation::Error("no such table");
  });
}

}  // extern "C"
