// GELU(z) = z Phi(z) and its derivative Phi(z) + z phi(z), from one exponential.
//
// With u = |z| / sqrt 2 the normal tail is Phi(-|z|) = erfc(u) / 2 = exp(-u^2) t P(t), t = 1 / (1 + u / 2); P
// is a polynomial fitted here (Lawson's iteration on Chebyshev nodes, weighted for relative error 4.3e-8 on 0
// <= u <= 10). The tail keeps its relative accuracy for large negative z, where 1 + erf(z / sqrt 2) would
// cancel.
#include "bias_gelu.h"
#include "layer_norm_row.h"

namespace smartcs::SMARTCS_ISA {
namespace {

// cdf = Phi(z), bell = exp(-z^2 / 2)
SMARTCS_INLINE void normal(Vec<float> z, Vec<float>& cdf, Vec<float>& bell) {
  const Vec<float> a = z < 0 ? -z : z;
  bell = exp(z * z * -0.5f);
  const Vec<float> t = 1.0f / (a * 0.353553391f + 1.0f);
  Vec<float> p = t * -0.0295346078f + 0.142288084f;
  p = p * t - 0.24360115f;
  p = p * t + 0.139034894f;
  p = p * t - 0.0133136924f;
  p = p * t + 0.101343777f;
  p = p * t + 0.121551801f;
  p = p * t + 0.141187665f;
  p = p * t + 0.141043208f;
  const Vec<float> tail = bell * t * p;
  cdf = z < 0 ? tail : 1.0f - tail;
}

SMARTCS_INLINE void normal(Vec<double> z, Vec<double>& cdf, Vec<double>& bell) {
  for (int i = 0; i < kLanes<double>; ++i) {
    cdf[i] = 0.5 * ::erfc(-z[i] * 0.70710678118654752440);
    bell[i] = ::exp(-0.5 * z[i] * z[i]);
  }
}

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
    sweep<A>(C, [&](int64_t j, auto n) {
      const Vec<A> z = biased(x, bias, j, n);
      Vec<A> cdf, bell;
      normal(z, cdf, bell);
      // -inf * 0 is NaN; the limit is 0.
      store(y + j, cdf == A(0) ? cdf : z * cdf, n);
    });
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
        const Vec<A> z = biased(x, bias, j, n);
        Vec<A> cdf, bell;
        normal(z, cdf, bell);
        const Vec<A> slope = bell == A(0) ? cdf : cdf + z * bell * A(0.39894228040143267794);
        const Vec<A> dx = load(grad_y + j, n) * slope;
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
