// One pass over memory per direction, like add_layer_norm, with the residual gathered from three tables and
// dropout after the normalisation instead of before it.
#include "embedding.h"
#include "layer_norm_row.h"
#include "philox.h"

namespace smartcs::SMARTCS_ISA {
namespace {

template <class S>
void forward(const EmbeddingForward& args, void* keep_buffer, int64_t begin, int64_t end) {
  using A = Compute<S>;
  const int64_t C = args.columns;
  const S* weight = static_cast<const S*>(args.weight);
  const S* bias = static_cast<const S*>(args.bias);
  A* keep = static_cast<A*>(keep_buffer);
  for (int64_t row = begin; row < end; ++row) {
    const S* word = static_cast<const S*>(args.word) + args.input_ids[row] * C;
    const S* token_type = static_cast<const S*>(args.token_type) + args.token_type_ids[row] * C;
    const S* position = static_cast<const S*>(args.position) + args.position_ids[row] * C;
    const S* perturbation = static_cast<const S*>(args.perturbation);
    if (perturbation != nullptr) perturbation += row * C;
    S* h = static_cast<S*>(args.h) + row * C;
    S* y = static_cast<S*>(args.y) + row * C;
    if (args.dropout.active()) fill_keep(args.dropout, row, C, keep);
    Vec<A> total{};
    sweep<A>(C, [&](int64_t j, auto n) {
      Vec<A> sum = load(word + j, n) + load(token_type + j, n) + load(position + j, n);
      if (perturbation != nullptr) sum += load(perturbation + j, n);
      store(h + j, sum, n);
      total += load(h + j, n);
    });
    const RowStatistics<A> s = row_statistics(h, C, sum_lanes<A>(total), static_cast<A>(args.eps));
    sweep<A>(C, [&](int64_t j, auto n) {
      Vec<A> v = (load(h + j, n) - s.mean) * s.rstd * load(weight + j, n) + load(bias + j, n);
      if (args.dropout.active()) v *= load(keep + j, n);
      store(y + j, v, n);
    });
    static_cast<A*>(args.mean)[row] = s.mean;
    static_cast<A*>(args.rstd)[row] = s.rstd;
  }
}

template <class S>
void backward(const EmbeddingBackward& args, void* keep_buffer, int64_t begin, int64_t end) {
  using A = Compute<S>;
  const int64_t C = args.columns;
  const int64_t count = (args.rows + kRowsPerPartial - 1) / kRowsPerPartial;
  const S* weight = static_cast<const S*>(args.weight);
  A* keep = static_cast<A*>(keep_buffer);
  for (int64_t partial = begin; partial < end; ++partial) {
    A *sum_weight = nullptr, *sum_bias = nullptr;
    if (args.partials != nullptr) {
      sum_weight = static_cast<A*>(args.partials) + partial * C;
      sum_bias = sum_weight + count * C;
      for (int64_t j = 0; j < C; ++j) sum_weight[j] = sum_bias[j] = 0;
    }
    const int64_t last = (partial + 1) * kRowsPerPartial;
    for (int64_t row = partial * kRowsPerPartial; row < (last < args.rows ? last : args.rows); ++row) {
      const S* grad_y = static_cast<const S*>(args.grad_y) + row * C;
      const S* h = static_cast<const S*>(args.h) + row * C;
      S* grad_h = static_cast<S*>(args.grad_h) + row * C;
      const RowStatistics<A> s{static_cast<const A*>(args.mean)[row], static_cast<const A*>(args.rstd)[row]};
      if (args.dropout.active()) fill_keep(args.dropout, row, C, keep);
      const auto grad = [&](int64_t j, auto n) {
        Vec<A> g = load(grad_y + j, n);
        if (args.dropout.active()) g *= load(keep + j, n);
        return g;
      };
      A mean_g, mean_gx;
      gradient_means(h, weight, C, s, grad, mean_g, mean_gx);
      sweep<A>(C, [&](int64_t j, auto n) {
        const Vec<A> dy = grad(j, n);
        const Vec<A> xhat = (load(h + j, n) - s.mean) * s.rstd;
        store(grad_h + j, (dy * load(weight + j, n) - mean_g - xhat * mean_gx) * s.rstd, n);
        if (sum_weight != nullptr) {
          accumulate<S>(sum_weight, j, dy * xhat, n);
          accumulate<S>(sum_bias, j, dy, n);
        }
      });
    }
  }
}

template <class S>
void scatter_add(const void* rows, const int64_t* ids, int64_t tokens, int64_t columns, void* table, int64_t begin,
                 int64_t end) {
  using A = Compute<S>;
  for (int64_t t = 0; t < tokens; ++t) {
    const S* from = static_cast<const S*>(rows) + t * columns + begin;
    A* to = static_cast<A*>(table) + ids[t] * columns + begin;
    sweep<A>(end - begin, [&](int64_t j, auto n) { accumulate<S>(to, j, load(from + j, n), n); });
  }
}

}  // namespace

const EmbeddingKernels embedding_kernels = {
    {forward<float>, forward<double>, forward<bf16>},
    {backward<float>, backward<double>, backward<bf16>},
    {scatter_add<float>, scatter_add<double>, scatter_add<bf16>},
    {sum_partials<float>, sum_partials<double>, sum_partials<bf16>},
    kRowsPerPartial,
};

}  // namespace smartcs::SMARTCS_ISA
