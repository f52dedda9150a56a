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
// for as many as on a GPU, or -2, where two blocks sum the squares.
const char* adamw_step(int64_t table, int64_t count, const void* tensors, const double* numbers, const double* schedule,
                       double anchor_weight, double max_grad_norm, double* partial_sums, double* norm) {
  using namespace smartcs::cuda;
  const AdamWStep args{schedule, anchor_weight, max_grad_norm, partial_sums, norm};
  const auto* first = static_cast<const AdamWTensor*>(tensors);
  const auto* own = reinterpret_cast<const AdamWNumbers*>(numbers);
  const std::vector<AdamWTensor> rows(first, first + count);
  const std::vector<AdamWNumbers> groups(own, own + count);
  return emulation::reported([&] {
    if (table == 0) return smartcs::cuda::adamw_step(args, rows, groups, 0);
    if (table == -2) return smartcs::cuda::adamw_step<kAdamWTensors, kAdamWGroups, 2>(args, rows, groups, 0);
    if (table == 11) return smartcs::cuda::adamw_step<1, 1>(args, rows, groups, 0);
    if (table == 41) return smartcs::cuda::adamw_step<4, 1>(args, rows, groups, 0);
    if (table == 32) return smartcs::cuda::adamw_step<3, 2>(args, rows, groups, 0);
    throw emulation::Error("no such table");
  });
}

}  // extern "C"
