// LayerNorm of one row and its gradient, shared by add_layer_norm and embedding.
//   y = (h - mean) * rstd * weight + bias,  mean and the biased variance over the row's C elements
//   dh = rstd * (g - mean(g) - xhat * mean(g * xhat)),  g = dy * weight,  xhat = (h - mean) * rstd
// The variance takes a second pass over the row (it is in L1): E[h^2] - E[h]^2 cancels.
#pragma once

#include "vec.h"

namespace smartcs::SMARTCS_ISA {

// Rows whose parameter gradients are summed into one partial sum. A constant: the order of summation, and so
// every bit of the result, is the same for any thread count.
inline constexpr int64_t kRowsPerPartial = 32;

template <class A>
struct RowStatistics {
  A mean, rstd;
};

template <class S, class A = Compute<S>>
SMARTCS_INLINE RowStatistics<A> row_statistics(const S* h, int64_t columns, A sum, A eps) {
  const A mean = sum / static_cast<A>(columns);
  Vec<A> squares{};
  sweep<A>(columns, [&](int64_t j, auto n) {
    Vec<A> d = load(h + j, n) - mean;
    if constexpr (!__is_same(decltype(n), Full)) {
      for (int i = n; i < kLanes<A>; ++i) d[i] = 0;
    }
    squares += d * d;
  });
  const A variance = sum_lanes<A>(squares) / static_cast<A>(columns);
  return {mean, A(1) / static_cast<A>(::sqrt(static_cast<double>(variance + eps)))};
}

template <class S, class A = Compute<S>>
SMARTCS_INLINE void accumulate(A* total, int64_t j, Vec<A> value, Full) {
  store(total + j, load(total + j, Full{}) + value, Full{});
}
template <class S, class A = Compute<S>>
SMARTCS_INLINE void accumulate(A* total, int64_t j, Vec<A> value, int n) {
  for (int i = 0; i < n; ++i) total[j + i] += value[i];
}

// The two row means of dh's formula. `grad(j, n)` yields dy.
template <class S, class Grad, class A = Compute<S>>
SMARTCS_INLINE void gradient_means(const S* h, const S* weight, int64_t columns, RowStatistics<A> row, Grad grad,
                                   A& mean_g, A& mean_gx) {
  Vec<A> sum_g{}, sum_gx{};
  sweep<A>(columns, [&](int64_t j, auto n) {
    const Vec<A> g = grad(j, n) * load(weight + j, n);  // lanes beyond the row are zero
    sum_g += g;
    sum_gx += g * ((load(h + j, n) - row.mean) * row.rstd);
  });
  mean_g = sum_lanes<A>(sum_g) / static_cast<A>(columns);
  mean_gx = sum_lanes<A>(sum_gx) / static_cast<A>(columns);
}

// total[c] = partials[0][c] + partials[1][c] + ... for columns [begin, end); partials is (count, columns).
template <class S>
static void sum_partials(const void* partials, int64_t count, int64_t columns, void* total, int64_t begin,
                         int64_t end) {
  using A = Compute<S>;
  const A* from = static_cast<const A*>(partials);
  S* to = static_cast<S*>(total);
  sweep<A>(end - begin, [&](int64_t j, auto n) {
    Vec<A> sum{};
    for (int64_t p = 0; p < count; ++p) sum += load(from + p * columns + begin + j, n);
    store(to + begin + j, sum, n);
  });
}

}  // namespace smartcs::SMARTCS_ISA
