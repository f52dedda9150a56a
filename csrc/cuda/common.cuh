// What the device code of all ops shares: number types, 16-byte access, sums over lanes and blocks.
//
// No torch header: nvcc compiles these files alone, and a host compiler runs them below tests/cuda/emulation.h, which
// then has defined the names of CUDA and the two things below that nvcc needs another way.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define SMARTCS_UNROLL _Pragma("unroll")
#define SMARTCS_SHARED(type, name, count) __shared__ type name[count]

namespace smartcs::cuda {
template <class Arguments>
void launch(void (*kernel)(Arguments), int64_t blocks, int threads, cudaStream_t stream, const Arguments& arguments) {
  constexpr int64_t kMost = 0xffffffff;  // more than any GPU takes: CUDA refuses it, where a number cut short would run
  if (blocks > 0) kernel<<<static_cast<unsigned>(blocks < kMost ? blocks : kMost), threads, 0, stream>>>(arguments);
}
}  // namespace smartcs::cuda
#endif

namespace smartcs::cuda {

using bf16 = __nv_bfloat16;
using half = __half;

// What numbers stored as S are computed in.
template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ double widen(double x) {
  return x;
}
__device__ __forceinline__ float widen(bf16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float widen(half x) {
  return __half2float(x);
}

__device__ __forceinline__ void narrow(float x, float* y) {
  *y = x;
}
__device__ __forceinline__ void narrow(double x, double* y) {
  *y = x;
}
__device__ __forceinline__ void narrow(float x, bf16* y) {
  *y = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void narrow(double x, bf16* y) {
  *y = __float2bfloat16_rn(static_cast<float>(x));
}
__device__ __forceinline__ void narrow(float x, half* y) {
  *y = __float2half_rn(x);
}

// x as it is after it was stored as S.
template <class S>
__device__ __forceinline__ Compute<S> rounded(Compute<S> x) {
  S y;
  narrow(x, &y);
  return widen(y);
}

// How many numbers 16 bytes hold: what a thread takes at once.
template <class S>
constexpr int kPack = 16 / sizeof(S);

__device__ __forceinline__ bool aligned(const void* p) {
  return (reinterpret_cast<uintptr_t>(p) & 15) == 0;
}

__host__ __device__ __forceinline__ int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Numbers first to first + kCount - 1 of `from`, as far as there are: those at `size` and beyond are 0.
template <class S, int kCount>
__device__ __forceinline__ void load(const S* from, int64_t first, int64_t size, Compute<S> (&x)[kCount]) {
  constexpr int kBytes = kCount * sizeof(S);
  static_assert(kBytes % 16 == 0, "whole 16 bytes");
  if (first + kCount <= size && aligned(from + first)) {
    uint4 raw[kBytes / 16];
    S numbers[kCount];
    SMARTCS_UNROLL
    for (int i = 0; i < kBytes / 16; ++i) raw[i] = reinterpret_cast<const uint4*>(from + first)[i];
    memcpy(numbers, raw, kBytes);
    SMARTCS_UNROLL
    for (int i = 0; i < kCount; ++i) x[i] = widen(numbers[i]);
    return;
  }
  SMARTCS_UNROLL
  for (int i = 0; i < kCount; ++i) x[i] = first + i < size ? widen(from[first + i]) : Compute<S>(0);
}

template <bool kWide>
struct UnitOf {
  using type = uint4;
};
template <>
struct UnitOf<false> {
  using type = uint2;
};

// The other way; 8 bytes at once where kCount numbers are no more.
template <class S, class A, int kCount>
__device__ __forceinline__ void store(S* to, int64_t first, int64_t size, const A (&x)[kCount]) {
  constexpr int kBytes = kCount * sizeof(S);
  using Unit = typename UnitOf<kBytes % 16 == 0>::type;
  static_assert(kBytes % sizeof(Unit) == 0, "whole units");
  if (first + kCount <= size && (reinterpret_cast<uintptr_t>(to + first) & (sizeof(Unit) - 1)) == 0) {
    Unit raw[kBytes / sizeof(Unit)];
    S numbers[kCount];
    SMARTCS_UNROLL
    for (int i = 0; i < kCount; ++i) narrow(x[i], &numbers[i]);
    memcpy(raw, numbers, kBytes);
    SMARTCS_UNROLL
    for (int i = 0; i < kBytes / static_cast<int>(sizeof(Unit)); ++i) reinterpret_cast<Unit*>(to + first)[i] = raw[i];
    return;
  }
  SMARTCS_UNROLL
  for (int i = 0; i < kCount; ++i) {
    if (first + i < size) narrow(x[i], to + first + i);
  }
}

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kWarp = 32;

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// x of `lanes` neighbouring lanes, a power of 2, combined: in every one of them, to the same bits, as a + b = b + a.
// All lanes of the warp must call it.
template <class Op, class T>
__device__ __forceinline__ T over_lanes(T x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) x = Op()(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// The same over a block, for kSums sums and then kMaxima maxima: the same bits in every thread and in every run.
// All threads must call it.
template <int kThreads, int kSums, int kMaxima>
__device__ __forceinline__ void over_block(double (&x)[kSums + kMaxima]) {
  constexpr int kCount = kSums + kMaxima, kWarps = kThreads / kWarp;
  SMARTCS_SHARED(double, parts, kWarps* kCount);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  SMARTCS_UNROLL
  for (int i = 0; i < kCount; ++i) x[i] = i < kSums ? over_lanes<Sum>(x[i], kWarp) : over_lanes<Max>(x[i], kWarp);
  __syncthreads();  // the parts of an earlier call are read
  if (lane == 0) {
    SMARTCS_UNROLL
    for (int i = 0; i < kCount; ++i) parts[warp * kCount + i] = x[i];
  }
  __syncthreads();  // all parts are written
  SMARTCS_UNROLL
  for (int i = 0; i < kCount; ++i) x[i] = parts[i];
  for (int w = 1; w < kWarps; ++w) {
    SMARTCS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const double part = parts[w * kCount + i];
      x[i] = i < kSums ? x[i] + part : Max()(x[i], part);
    }
  }
}

// One thread's share of two runs of `size` numbers: packs `thread`, `thread` + `threads` and so on. With kHold > 0,
// which needs size <= kHold * threads * kPack<S>, they are read once and stay in registers; with kHold = 0 every sweep
// reads them, all but the first from the caches. The order of numbers is the same, and so are the bits of sums.
template <class S, int kHold>
struct Share {
  using A = Compute<S>;
  const S *x, *y;
  int64_t size;
  int thread, threads;
  A held_x[kHold > 0 ? kHold : 1][kPack<S>], held_y[kHold > 0 ? kHold : 1][kPack<S>];

  __device__ Share(const S* x, const S* y, int64_t size, int thread, int threads)
      : x(x), y(y), size(size), thread(thread), threads(threads) {
    SMARTCS_UNROLL
    for (int i = 0; i < kHold; ++i) {
      load(x, first(i), size, held_x[i]);
      load(y, first(i), size, held_y[i]);
    }
  }

  __device__ int64_t first(int64_t i) const { return (thread + i * threads) * kPack<S>; }

  // Calls use(first, count, a, b): the next `count` numbers of both, from number `first` on; 0 beyond those.
  template <class F>
  __device__ __forceinline__ void sweep(F use) const {
    if constexpr (kHold > 0) {
      SMARTCS_UNROLL
      for (int i = 0; i < kHold; ++i) {
        if (first(i) < size) use(first(i), count(first(i)), held_x[i], held_y[i]);
      }
    } else {
      for (int64_t i = 0; first(i) < size; ++i) {
        A a[kPack<S>], b[kPack<S>];
        load(x, first(i), size, a);
        load(y, first(i), size, b);
        use(first(i), count(first(i)), a, b);
      }
    }
  }

 private:
  __device__ int count(int64_t from) const { return static_cast<int>(size - from < kPack<S> ? size - from : kPack<S>); }
};

}  // namespace smartcs::cuda
