// Attention for one (head, sequence) at a time, in blocks of kBlock query rows.
//
// Sequences are short (a sentence is 10-60 tokens), so the score block fits in cache and no online softmax is
// needed. Operands are copied once into padded float buffers: that widens bf16, gathers the strided heads,
// transposes where the product wants it, and lets gemm.h run without edge cases. What was tried: dot products
// along the head size instead of a transposed K (half the speed: a horizontal sum per score).
#include "attention.h"
#include "gemm.h"
#include "philox.h"

namespace smartcs::SMARTCS_ISA {
namespace {

constexpr int64_t kBlock = 64;

template <class A>
int64_t padded(int64_t n) {
  return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}
inline int64_t round_up_64(int64_t n) {
  return (n + 63) / 64 * 64;
}
inline int64_t minimum(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Hands out consecutive 64-byte aligned arrays; with a null base it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class A>
  A* take(int64_t count) {
    char* p = base == nullptr ? nullptr : base + used;
    used += round_up_64(count * static_cast<int64_t>(sizeof(A)));
    return reinterpret_cast<A*>(p);
  }
};

template <class A>
struct ForwardBuffers {
  A *queries, *keys_t, *values, *scores, *context, *keep;
  ForwardBuffers(Arena& arena, int64_t length, int64_t head_size) {
    const int64_t lp = padded<A>(length), dp = padded<A>(head_size), block = minimum(kBlock, length);
    queries = arena.take<A>(block * dp);
    keys_t = arena.take<A>(head_size * lp);
    values = arena.take<A>(length * dp);
    scores = arena.take<A>(block * lp);
    context = arena.take<A>(block * dp);
    keep = arena.take<A>(round_up_64(length));
  }
};

template <class A>
struct BackwardBuffers {
  A *queries, *keys_t, *keys, *values_t, *grad_context, *scores, *grad_scores, *grad_queries, *grad_keys, *grad_values,
      *keep;
  BackwardBuffers(Arena& arena, int64_t length, int64_t head_size) {
    const int64_t lp = padded<A>(length), dp = padded<A>(head_size), block = minimum(kBlock, length);
    queries = arena.take<A>(block * dp);
    keys_t = arena.take<A>(head_size * lp);
    keys = arena.take<A>(length * dp);
    values_t = arena.take<A>(head_size * lp);
    grad_context = arena.take<A>(block * dp);
    scores = arena.take<A>(block * lp);
    grad_scores = arena.take<A>(block * lp);
    grad_queries = arena.take<A>(block * dp);
    grad_keys = arena.take<A>(length * dp);
    grad_values = arena.take<A>(length * dp);
    keep = arena.take<A>(round_up_64(length));
  }
};

// (rows, D) with a token stride -> (rows, padded D), the padding zero.
template <class S>
void copy_rows(const S* from, int64_t stride, int64_t rows, int64_t head_size, Compute<S>* to) {
  const int64_t dp = padded<Compute<S>>(head_size);
  for (int64_t i = 0; i < rows; ++i) {
    sweep<Compute<S>>(head_size,
                      [&](int64_t d, auto n) { store(to + i * dp + d, load(from + i * stride + d, n), Full{}); });
  }
}

// (rows, D) with a token stride -> (D, padded rows), the padding zero.
template <class S>
void copy_transposed(const S* from, int64_t stride, int64_t rows, int64_t head_size, Compute<S>* to) {
  const int64_t lp = padded<Compute<S>>(rows);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < head_size; ++d) to[d * lp + i] = widen(from[i * stride + d]);
  }
  for (int64_t d = 0; d < head_size; ++d) {
    for (int64_t i = rows; i < lp; ++i) to[d * lp + i] = 0;
  }
}

template <class S>
void write_rows(const Compute<S>* from, int64_t rows, int64_t head_size, S* to, int64_t stride) {
  const int64_t dp = padded<Compute<S>>(head_size);
  for (int64_t i = 0; i < rows; ++i) {
    sweep<Compute<S>>(head_size,
                      [&](int64_t d, auto n) { store(to + i * stride + d, load(from + i * dp + d, Full{}), n); });
  }
}

template <class A>
void multiply_in_place(A* row, const A* factor, int64_t n) {
  for (int64_t j = 0; j < n; j += kLanes<A>) store(row + j, load(row + j, Full{}) * load(factor + j, Full{}), Full{});
}

template <class A>
void scale_in_place(A* row, A factor, int64_t n) {
  for (int64_t j = 0; j < n; j += kLanes<A>) store(row + j, load(row + j, Full{}) * factor, Full{});
}

// scores <- exp(scale * scores - shift), columns beyond `length` <- 0; returns the sum.
template <class A>
A exponentiate(A* scores, int64_t length, A scale, A shift) {
  Vec<A> sum{};
  sweep<A>(length, [&](int64_t j, auto n) {
    Vec<A> p = exp(load(scores + j, Full{}) * scale - shift);
    if constexpr (!__is_same(decltype(n), Full)) {
      for (int i = n; i < kLanes<A>; ++i) p[i] = 0;
    }
    sum += p;
    store(scores + j, p, Full{});
  });
  return sum_lanes<A>(sum);
}

template <class A>
A maximum(const A* scores, int64_t length) {
  Vec<A> best = splat(scores[0]);
  sweep<A>(length, [&](int64_t j, auto n) {
    const Vec<A> v = load(scores + j, n);
    if constexpr (__is_same(decltype(n), Full)) {
      best = v > best ? v : best;
    } else {
      for (int i = 0; i < n; ++i) best[i] = v[i] > best[i] ? v[i] : best[i];
    }
  });
  return max_lanes<A>(best);
}

template <class S>
void forward(const AttentionForward& args, void* scratch, int64_t begin, int64_t end) {
  using A = Compute<S>;
  const AttentionShape& shape = args.shape;
  const int64_t H = shape.heads, D = shape.head_size, dp = padded<A>(D), stride = 3 * H * D;
  const A scale = static_cast<A>(shape.scale);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t h = item / shape.batch, b = item % shape.batch;
    const int64_t first = shape.cu_seqlens[b], length = shape.cu_seqlens[b + 1] - first, lp = padded<A>(length);
    if (length == 0) continue;
    Arena arena{static_cast<char*>(scratch)};
    const ForwardBuffers<A> buffer(arena, length, D);
    const S* qkv = static_cast<const S*>(args.qkv) + first * stride + h * D;
    copy_transposed(qkv + H * D, stride, length, D, buffer.keys_t);
    copy_rows(qkv + 2 * H * D, stride, length, D, buffer.values);
    for (int64_t row = 0; row < length; row += kBlock) {
      const int64_t rows = minimum(kBlock, length - row);
      copy_rows(qkv + row * stride, stride, rows, D, buffer.queries);
      gemm<A>(rows, lp, D, {buffer.queries, dp, 1}, buffer.keys_t, lp, buffer.scores, lp, false);
      for (int64_t i = 0; i < rows; ++i) {
        A* p = buffer.scores + i * lp;
        const int64_t token = first + row + i;
        // scale may be negative, so the maximum is taken of the scaled scores.
        scale_in_place(p, scale, lp);
        const A shift = maximum(p, length);
        const A sum = exponentiate(p, length, A(1), shift);
        static_cast<A*>(args.lse)[token * H + h] = shift + static_cast<A>(::log(sum));
        scale_in_place(p, 1 / sum, lp);
        if (shape.dropout.active()) {
          fill_keep(shape.dropout, token * H + h, length, buffer.keep);
          multiply_in_place(p, buffer.keep, lp);
        }
      }
      gemm<A>(rows, dp, length, {buffer.scores, lp, 1}, buffer.values, dp, buffer.context, dp, false);
      write_rows(buffer.context, rows, D, static_cast<S*>(args.out) + (first + row) * H * D + h * D, H * D);
    }
  }
}

// With P the softmax, M the dropout factors and Z = P * M:
//   dV = Z^T dO,  dP = (dO V^T) * M,  dS = P * (dP - rowsum(P * dP)),  dQ = scale dS K,  dK = scale dS^T Q.
// A whole row of dP is at hand, so its mean under P is taken from it and not, as a tiled kernel must, as rowsum(dO *
// O): that is as large but rounded apart from dP, and where the softmax is sharp the difference is all that dS should
// be.
template <class S>
void backward(const AttentionBackward& args, void* scratch, int64_t begin, int64_t end) {
  using A = Compute<S>;
  const AttentionShape& shape = args.shape;
  const int64_t H = shape.heads, D = shape.head_size, dp = padded<A>(D), stride = 3 * H * D;
  const A scale = static_cast<A>(shape.scale);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t h = item / shape.batch, b = item % shape.batch;
    const int64_t first = shape.cu_seqlens[b], length = shape.cu_seqlens[b + 1] - first, lp = padded<A>(length);
    if (length == 0) continue;
    Arena arena{static_cast<char*>(scratch)};
    const BackwardBuffers<A> buffer(arena, length, D);
    const S* qkv = static_cast<const S*>(args.qkv) + first * stride + h * D;
    const S* grad_out = static_cast<const S*>(args.grad_out) + first * H * D + h * D;
    S* grad_qkv = static_cast<S*>(args.grad_qkv) + first * stride + h * D;
    copy_transposed(qkv + H * D, stride, length, D, buffer.keys_t);
    copy_rows(qkv + H * D, stride, length, D, buffer.keys);
    copy_transposed(qkv + 2 * H * D, stride, length, D, buffer.values_t);
    for (int64_t row = 0; row < length; row += kBlock) {
      const int64_t rows = minimum(kBlock, length - row);
      copy_rows(qkv + row * stride, stride, rows, D, buffer.queries);
      copy_rows(grad_out + row * H * D, H * D, rows, D, buffer.grad_context);
      gemm<A>(rows, lp, D, {buffer.queries, dp, 1}, buffer.keys_t, lp, buffer.scores, lp, false);
      gemm<A>(rows, lp, D, {buffer.grad_context, dp, 1}, buffer.values_t, lp, buffer.grad_scores, lp, false);
      for (int64_t i = 0; i < rows; ++i) {
        A* p = buffer.scores + i * lp;
        A* g = buffer.grad_scores + i * lp;
        const int64_t token = first + row + i;
        // 1, but for the rounding of lse, which grows with the scores.
        const A sum = exponentiate(p, length, scale, static_cast<const A*>(args.lse)[token * H + h]);
        if (shape.dropout.active()) fill_keep(shape.dropout, token * H + h, length, buffer.keep);
        Vec<A> total{};
        for (int64_t j = 0; j < lp; j += kLanes<A>) {
          const Vec<A> prob = load(p + j, Full{}) / sum;
          Vec<A> dp_row = load(g + j, Full{});
          if (shape.dropout.active()) dp_row *= load(buffer.keep + j, Full{});
          total += prob * dp_row;
          store(p + j, prob, Full{});
          store(g + j, dp_row, Full{});
        }
        const A mean = sum_lanes<A>(total);
        for (int64_t j = 0; j < lp; j += kLanes<A>) {
          const Vec<A> prob = load(p + j, Full{});
          store(g + j, prob * (load(g + j, Full{}) - mean) * scale, Full{});
          if (shape.dropout.active()) store(p + j, prob * load(buffer.keep + j, Full{}), Full{});
        }
      }
      const bool accumulate = row > 0;
      gemm<A>(rows, dp, length, {buffer.grad_scores, lp, 1}, buffer.keys, dp, buffer.grad_queries, dp, false);
      gemm<A>(length, dp, rows, {buffer.grad_scores, 1, lp}, buffer.queries, dp, buffer.grad_keys, dp, accumulate);
      gemm<A>(length, dp, rows, {buffer.scores, 1, lp}, buffer.grad_context, dp, buffer.grad_values, dp, accumulate);
      write_rows(buffer.grad_queries, rows, D, grad_qkv + row * stride, stride);
    }
    write_rows(buffer.grad_keys, length, D, grad_qkv + H * D, stride);
    write_rows(buffer.grad_values, length, D, grad_qkv + 2 * H * D, stride);
  }
}

// Sized for double, the widest compute type.
int64_t forward_scratch(const AttentionShape& shape) {
  Arena arena{nullptr};
  const ForwardBuffers<double> buffers(arena, shape.max_seqlen, shape.head_size);
  return arena.used;
}
int64_t backward_scratch(const AttentionShape& shape) {
  Arena arena{nullptr};
  const BackwardBuffers<double> buffers(arena, shape.max_seqlen, shape.head_size);
  return arena.used;
}

}  // namespace

const AttentionKernels attention_kernels = {
    {forward<float>, forward<double>, forward<bf16>},
    {backward<float>, backward<double>, backward<bf16>},
    forward_scratch,
    backward_scratch,
};

}  // namespace smartcs::SMARTCS_ISA
