// A handful of classes per row: the arithmetic is scalar and in double for every storage type. What it
// protects is the near-equal case SMART lives in, where the logits of the two sides agree to five digits.
#include "symmetric_kl.h"
#include "vec.h"

namespace smartcs::SMARTCS_ISA {
namespace {

double at(const float* p, int64_t i) {
  return p[i];
}
double at(const double* p, int64_t i) {
  return p[i];
}
double at(const bf16* p, int64_t i) {
  return widen(p[i]);
}

// a - b, where equal infinities (a class masked on both sides) differ by nothing.
double difference(double a, double b) {
  return a == b ? 0.0 : a - b;
}
double times(double p, double x) {
  return p == 0.0 ? 0.0 : p * x;
}

// p - q without cancellation, x = log(p / q).
double gap(double p, double q, double x) {
  return x > -0.5 && x < 0.5 ? q * ::expm1(x) : p - q;
}

// p - q for p = sigmoid(a), q = sigmoid(b), x = a - b: sigmoid(a) sigmoid(-b) (1 - exp(-x)), or its mirror image
// where that exponential could overflow.
double binary_gap(double a, double b, double x) {
  return x > 0 ? -::expm1(-x) / ((1 + ::exp(-a)) * (1 + ::exp(b))) : ::expm1(x) / ((1 + ::exp(a)) * (1 + ::exp(-b)));
}

template <class S>
double log_sum_exp(const S* logits, int64_t n) {
  double top = at(logits, 0), sum = 0;
  for (int64_t k = 1; k < n; ++k) top = at(logits, k) > top ? at(logits, k) : top;
  for (int64_t k = 0; k < n; ++k) sum += ::exp(at(logits, k) - top);
  return top + ::log(sum);
}

// log(p_k / q_k) = (d_k - top) - shift with d = a - b and shift = log sum_j q_j exp(d_j - top).
struct Row {
  double lse_a, lse_b, top, shift;
};

template <class S>
Row prepare(const S* a, const S* b, int64_t n) {
  Row row{log_sum_exp(a, n), log_sum_exp(b, n), difference(at(a, 0), at(b, 0)), 0};
  for (int64_t k = 1; k < n; ++k) {
    const double d = difference(at(a, k), at(b, k));
    row.top = d > row.top ? d : row.top;
  }
  if (row.top == INFINITY) row.top = 0;  // a class masked in b alone: the loss is infinite, not inf - inf
  double sum = 0;
  bool near = true;
  for (int64_t k = 0; k < n; ++k) {
    const double e = difference(at(a, k), at(b, k)) - row.top;
    const double q = ::exp(at(b, k) - row.lse_b);
    near = near && e < 0.5 && (e > -0.5 || q == 0.0);
    sum += times(q, ::expm1(e));
  }
  row.shift = near ? ::log1p(sum) : row.lse_a - row.lse_b - row.top;
  return row;
}

struct Class {
  double p, q, x, gap;  // x = log(p / q)
};

template <class S>
Class at_class(const Row& row, const S* a, const S* b, int64_t k) {
  Class c;
  c.p = ::exp(at(a, k) - row.lse_a);
  c.q = ::exp(at(b, k) - row.lse_b);
  c.x = difference(at(a, k), at(b, k)) - row.top - row.shift;
  c.gap = gap(c.p, c.q, c.x);
  return c;
}

template <class S>
void forward(const SymmetricKlForward& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const S* a = static_cast<const S*>(args.a) + i * args.classes;
    const S* b = static_cast<const S*>(args.b) + i * args.classes;
    double loss = 0;
    if (args.bernoulli) {
      const double x = difference(at(a, 0), at(b, 0));
      loss = times(binary_gap(at(a, 0), at(b, 0), x), x);
    } else {
      const Row row = prepare(a, b, args.classes);
      for (int64_t k = 0; k < args.classes; ++k) {
        const Class c = at_class(row, a, b, k);
        loss += times(c.gap, c.x);
      }
    }
    static_cast<Compute<S>*>(args.loss)[i] = static_cast<Compute<S>>(loss);
  }
}

template <class S>
void write(void* out, int64_t i, double value) {
  if (out != nullptr) narrow(static_cast<Compute<S>>(value), static_cast<S*>(out) + i);
}

template <class S>
void backward(const SymmetricKlBackward& args, int64_t begin, int64_t end) {
  const int64_t K = args.classes;
  for (int64_t i = begin; i < end; ++i) {
    const S* a = static_cast<const S*>(args.a) + i * K;
    const S* b = static_cast<const S*>(args.b) + i * K;
    const double g = static_cast<const Compute<S>*>(args.grad_loss)[i];
    if (args.bernoulli) {
      const double x = difference(at(a, 0), at(b, 0));
      const double p = 1 / (1 + ::exp(-at(a, 0))), q = 1 / (1 + ::exp(-at(b, 0)));
      const double between = binary_gap(at(a, 0), at(b, 0), x);
      const bool full = !args.detach_targets;
      // 1 - p as the other class's probability: it would round to 0 long before p does.
      write<S>(args.grad_a, i, g * (between + (full ? times(p / (1 + ::exp(at(a, 0))), x) : 0.0)));
      write<S>(args.grad_b, i, -g * (between + (full ? times(q / (1 + ::exp(at(b, 0))), x) : 0.0)));
      continue;
    }
    const Row row = prepare(a, b, K);
    double mean_p = 0, mean_q = 0;
    for (int64_t k = 0; k < K; ++k) {
      const Class c = at_class(row, a, b, k);
      mean_p += times(c.p, c.x);
      mean_q += times(c.q, c.x);
    }
    for (int64_t k = 0; k < K; ++k) {
      const Class c = at_class(row, a, b, k);
      double da = c.gap, db = -c.gap;
      if (!args.detach_targets) {
        da += times(c.p, c.x - mean_p);
        db -= times(c.q, c.x - mean_q);
      }
      write<S>(args.grad_a, i * K + k, g * da);
      write<S>(args.grad_b, i * K + k, g * db);
    }
  }
}

}  // namespace

const SymmetricKlKernels symmetric_kl_kernels = {
    {forward<float>, forward<double>, forward<bf16>},
    {backward<float>, backward<double>, backward<bf16>},
};

}  // namespace smartcs::SMARTCS_ISA
