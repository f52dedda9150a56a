// bias + exact GELU, elementwise. GELU itself: gelu.h.
#include "bias_gelu.h"

#include "gelu.h"
#include "layer_norm_row.h"

namespace smartcs::SMARTCS_ISA {
namespace {

template <class S, class N>
SMARTCS_INLINE Vec<Compute<S>> biased(const S* x, const S* bias, int64_t j, N n) {
  Vec<Compute<S>> z = load(x + j, n);
  if (bias != nullptr) z += load(bias + j, n);
  return z;
}

template <class S>
void forward(const BiasGeluForward& args, int64_t begin, int64_t end) {
  using A = Compute<S>;
  const int64_t C = args.columns;
  const S* bias = static_cast<const S*>(args.bias);
  for (int64_t row = begin; row < end; ++row) {
    const S* x = static_cast<const S*>(args.x) + row * C;
    S* y = static_cast<S*>(args.y) + row * C;
    sweep<A>(C, [&](int64_t j, auto n) { store(y + j, gelu<A>(biased(x, bias, j, n)), n); });
  }
}

template <class S>
void backward(const BiasGeluBackward& args, int64_t begin, int64_t end) {
  using A = Compute<S>;
  const int64_t C = args.columns;
  const S* bias = static_cast<const S*>(args.bias);
  for (int64_t partial = begin; partial < end; ++partial) {
    A* sum = nullptr;
    if (args.partials != nullptr) {
      sum = static_cast<A*>(args.partials) + partial * C;
      for (int64_t j = 0; j < C; ++j) sum[j] = 0;
    }
    const int64_t last = (partial + 1) * kRowsPerPartial;
    for (int64_t row = partial * kRowsPerPartial; row < (last < args.rows ? last : args.rows); ++row) {
      const S* grad_y = static_cast<const S*>(args.grad_y) + row * C;
      const S* x = static_cast<const S*>(args.x) + row * C;
      S* grad_x = static_cast<S*>(args.grad_x) + row * C;
      sweep<A>(C, [&](int64_t j, auto n) {
        const Vec<A> dx = load(grad_y + j, n) * gelu_slope<A>(biased(x, bias, j, n));
        store(grad_x + j, dx, n);
        if (sum != nullptr) accumulate<S>(sum, j, dx, n);
      });
    }
  }
}

}  // namespace

const BiasGeluKernels bias_gelu_kernels = {
    {forward<float>, forward<double>, forward<bf16>},
    {backward<float>, backward<double>, backward<bf16>},
    {sum_partials<float>, sum_partials<double>, sum_partials<bf16>},
    kRowsPerPartial,
};

}  // namespace smartcs::SMARTCS_ISA
