// Packed variable-length self-attention: the kernels' arguments. Formulas: smartcs/ops/attention.py.
// T tokens, H heads, D head size; sequence b owns tokens [cu_seqlens[b], cu_seqlens[b+1]).
#pragma once

#include "isa.h"

namespace smartcs {

struct AttentionShape {
  const int32_t* cu_seqlens;  // (B+1)
  int64_t batch, heads, head_size, max_seqlen;
  double scale;
  Dropout dropout;
};

// Pointers are to the storage type of the table entry, lse to its compute type.
struct AttentionForward {
  AttentionShape shape;
  const void* qkv;  // (T, 3, H, D)
  void* out;        // (T, H, D), written
  void* lse;        // (T, H), written: log-sum-exp of the scaled scores
};

struct AttentionBackward {
  AttentionShape shape;
  const void* grad_out;  // (T, H, D)
  const void* qkv;       // (T, 3, H, D)
  const void* lse;       // (T, H)
  void* grad_qkv;        // (T, 3, H, D), written
};

// Both work on items [begin, end) of the H * B pairs (head h, sequence b) at h * B + b: neighbouring items
// share a head, so an even split of the items is an even split of the work whatever the lengths.
struct AttentionKernels {
  void (*forward[kStorageCount])(const AttentionForward&, void* scratch, int64_t begin, int64_t end);
  void (*backward[kStorageCount])(const AttentionBackward&, void* scratch, int64_t begin, int64_t end);
  int64_t (*forward_scratch)(const AttentionShape&);  // bytes one thread needs, 64-byte aligned
  int64_t (*backward_scratch)(const AttentionShape&);
};

SMARTCS_KERNELS(AttentionKernels, attention_kernels)

}  // namespace smartcs
