// One pass over memory: a row is read, summed, normalised and written while it sits in L1.
#include "add_layer_norm.h"
#include "layer_norm_row.h"
#include "philox.h"

namespace smartcs::SMARTCS_ISA {
namespace {

template <class S>
void forward(const AddLayerNormForward& args, void* keep_buffer, int64_t begin, int64_t end) {
  using A = Compute<S>;
  const int64_t C = args.columns;
  const S* input_bias = static_cast<const S*>(args.input_bias);
  const S* weight = static_cast<const S*>(args.weight);
  const S* bias = static_cast<const S*>(args.bias);
  A* keep = static_cast<A*>(keep_buffer);
  for (int64_t row = begin; row < end; ++row) {
    const S* x = static_cast<const S*>(args.x) + row * C;
    const S* residual = static_cast<const S*>(args.residual) + row * C;
    S* h = static_cast<S*>(args.h) + row * C;
    S* y = static_cast<S*>(args.y) + row * C;
    if (args.dropout.active()) fill_keep(args.dropout, row, C, keep);
    Vec<A> total{};
    sweep<A>(C, [&](int64_t j, auto n) {
      Vec<A> v = load(x + j, n);
      if (input_bias != nullptr) v += load(input_bias + j, n);
      if (args.dropout.active()) v *= load(keep + j, n);
      store(h + j, v + load(residual + j, n), n);
      total += load(h + j, n);  // as rounded: the backward pass sees the stored h
    });
    const RowStatistics<A> s = row_statistics(h, C, sum_lanes<A>(total), static_cast<A>(args.eps));
    sweep<A>(C, [&](int64_t j, auto n) {
      store(y + j, (load(h + j, n) - s.mean) * s.rstd * load(weight + j, n) + load(bias + j, n), n);
    });
    static_cast<A*>(args.mean)[row] = s.mean;
    static_cast<A*>(args.rstd)[row] = s.rstd;
  }
}

template <class S>
void backward(const AddLayerNormBackward& args, void* keep_buffer, int64_t begin, int64_t end) {
  using A = Compute<S>;
  const int64_t C = args.columns;
  const int64_t count = (args.rows + kRowsPerPartial - 1) / kRowsPerPartial;
  const S* weight = static_cast<const S*>(args.weight);
  A* keep = static_cast<A*>(keep_buffer);
  for (int64_t partial = begin; partial < end; ++partial) {
    A *sum_weight = nullptr, *sum_bias = nullptr, *sum_input = nullptr;
    if (args.partials != nullptr) {
      sum_weight = static_cast<A*>(args.partials) + partial * C;
      sum_bias = sum_weight + count * C;
      sum_input = sum_bias + count * C;
      for (int64_t j = 0; j < C; ++j) sum_weight[j] = sum_bias[j] = sum_input[j] = 0;
    }
    const int64_t last = (partial + 1) * kRowsPerPartial;
    for (int64_t row = partial * kRowsPerPartial; row < (last < args.rows ? last : args.rows); ++row) {
      const S* grad_y = static_cast<const S*>(args.grad_y) + row * C;
      const S* h = static_cast<const S*>(args.h) + row * C;
      S* grad_residual = static_cast<S*>(args.grad_residual) + row * C;
      const RowStatistics<A> s{static_cast<const A*>(args.mean)[row], static_cast<const A*>(args.rstd)[row]};
      A mean_g, mean_gx;
      gradient_means(h, weight, C, s, [&](int64_t j, auto n) { return load(grad_y + j, n); }, mean_g, mean_gx);
      if (args.dropout.active()) fill_keep(args.dropout, row, C, keep);
      sweep<A>(C, [&](int64_t j, auto n) {
        const Vec<A> dy = load(grad_y + j, n);
        const Vec<A> xhat = (load(h + j, n) - s.mean) * s.rstd;
        const Vec<A> dh = (dy * load(weight + j, n) - mean_g - xhat * mean_gx) * s.rstd;
        store(grad_residual + j, dh, n);
        Vec<A> dx = dh;
        if (args.dropout.active()) {
          dx = dh * load(keep + j, n);
          store(static_cast<S*>(args.grad_x) + row * C + j, dx, n);
        }
        if (sum_weight != nullptr) {
          accumulate<S>(sum_weight, j, dy * xhat, n);
          accumulate<S>(sum_bias, j, dy, n);
          accumulate<S>(sum_input, j, dx, n);
        }
      });
    }
  }
}

}  // namespace

const AddLayerNormKernels add_layer_norm_kernels = {
    {forward<float>, forward<double>, forward<bf16>},
    {backward<float>, backward<double>, backward<bf16>},
    {sum_partials<float>, sum_partials<double>, sum_partials<bf16>},
    kRowsPerPartial,
};

}  // namespace smartcs::SMARTCS_ISA
