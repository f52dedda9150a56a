// The pass over all tensors of an AdamW step, cut into pieces of fixed size: results are bit-equal for any number of
// threads. Arithmetic: adamw_kernel.cpp, and bf16_kernel.cpp for the packed copies.
#pragma once

#include <numeric>
#include <utility>
#include <vector>

#include "adamw.h"
#include "bf16_kernels.h"
#include "bf16_layout.h"
#include "common.h"
#include "row_groups.h"

namespace smartcs::adamw {

// Elements of a piece: enough to keep a stream going, few enough to share out. A constant: partial sums of the norm
// are those of the pieces.
inline constexpr int64_t kPiece = 16384;
// What is known of a row of a table with sparse gradients (smartcs/ops/adamw.py).
inline constexpr uint8_t kHasMoments = 1, kAnchorDiffers = 2;

// The gradient of a table of which only some rows were used: one address per row, null for rows without gradient.
struct SparseGradient {
  std::vector<const void*> of_row;
  std::vector<int64_t> rows;  // that have one, ascending
  std::unique_ptr<void, Free> sums;
};

struct Task {
  AdamWTensor tensor{};
  Storage storage = kFloat32;
  int64_t numel = 0, columns = 0;
  const void* grad = nullptr;  // dense
  std::optional<SparseGradient> sparse;
  uint8_t* row_flags = nullptr;
  uint16_t *packed = nullptr, *packed_t = nullptr;

  bool updated() const { return grad != nullptr || sparse.has_value(); }
  int64_t element_size() const { return storage == kFloat32 ? 4 : 8; }
  bool packs() const { return packed != nullptr || packed_t != nullptr; }
};

// Rows [begin, end) of a table with row flags or of a packed weight, elements otherwise.
struct Piece {
  const Task* task;
  int64_t begin, end;
};

// Rows that occur several times are added up in the order given.
inline SparseGradient coalesced(const Task& task, const at::Tensor& values, const at::Tensor& rows,
                                int64_t table_rows) {
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const int64_t bytes = task.columns * task.element_size();
  const char* data = static_cast<const char*>(values.const_data_ptr());
  const RowGroups groups(row, rows.size(0));
  SparseGradient result;
  result.of_row.resize(table_rows, nullptr);
  result.rows.resize(groups.size());
  if (groups.size() < rows.size(0)) result.sums = scratch(groups.size() * bytes);
  const auto add = adamw_kernels().add[task.storage];
  at::parallel_for(0, groups.size(), grain(task.columns), [&](int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) {
      const auto value = [&](int64_t k) { return data + groups.order[k] * bytes; };
      const int64_t begin = groups.offsets[g], end = groups.offsets[g + 1];
      const void* total = value(begin);
      for (int64_t k = begin + 1; k < end; ++k) {
        void* sum = static_cast<char*>(result.sums.get()) + g * bytes;
        add(total, value(k), sum, task.columns);
        total = sum;
      }
      result.rows[g] = row[groups.order[begin]];
      result.of_row[result.rows[g]] = total;
    }
  });
  return result;
}

inline int64_t rows_per_piece(const Task& task) {
  return std::max<int64_t>(1, kPiece / std::max<int64_t>(1, task.columns));
}

inline double global_norm(const std::vector<Task>& tasks) {
  std::vector<Piece> pieces;
  for (const Task& task : tasks) {
    const int64_t count = task.sparse ? static_cast<int64_t>(task.sparse->rows.size()) : task.grad ? task.numel : 0;
    const int64_t step = task.sparse ? rows_per_piece(task) : kPiece;
    for (int64_t begin = 0; begin < count; begin += step) {
      pieces.push_back({&task, begin, std::min(begin + step, count)});
    }
  }
  std::vector<double> sums(pieces.size());
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const auto [task, begin, end] = pieces[p];
      const auto squares = adamw_kernels().squares[task->storage];
      if (task->sparse) {
        for (int64_t r = begin; r < end; ++r) {
          sums[p] += squares(task->sparse->of_row[task->sparse->rows[r]], task->columns);
        }
      } else {
        sums[p] = squares(static_cast<const char*>(task->grad) + begin * task->element_size(), end - begin);
      }
    }
  });
  return std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0));
}

inline void step_rows(const Task& task, int64_t begin, int64_t end, const void* zero_row) {
  const AdamWKernels& kernels = adamw_kernels();
  const int64_t C = task.columns;
  // Rows whose anchor equals them may be passed over only as long as they do not move.
  const bool decays = task.sparse && task.tensor.decay != 1;
  for (int64_t row = begin; row < end; ++row) {
    uint8_t& flags = task.row_flags[row];
    const void* grad = task.sparse ? task.sparse->of_row[row] : nullptr;
    if (grad != nullptr) flags |= kHasMoments;
    if (task.sparse && (flags & kHasMoments)) {
      flags |= kAnchorDiffers;
      kernels.update[task.storage](task.tensor, grad != nullptr ? grad : zero_row, row * C, (row + 1) * C);
    } else if (decays) {
      flags |= kAnchorDiffers;
      kernels.idle[task.storage](task.tensor, row * C, (row + 1) * C);
    } else if ((flags & kAnchorDiffers) && task.tensor.anchor != nullptr) {
      kernels.follow[task.storage](task.tensor, row * C, (row + 1) * C);
    }
  }
}

inline void step_span(const Task& task, int64_t begin, int64_t end) {
  const AdamWKernels& kernels = adamw_kernels();
  if (task.grad != nullptr) {
    const void* grad = static_cast<const char*>(task.grad) + begin * task.element_size();
    kernels.update[task.storage](task.tensor, grad, begin, end);
  } else if (task.tensor.anchor != nullptr) {
    kernels.follow[task.storage](task.tensor, begin, end);
  }
}

// One panel of rows at a time, packed while it is in cache.
inline void step_panel(const Task& task, int64_t begin, int64_t end) {
  const Bf16Kernels& kernels = bf16_kernels();
  const int64_t C = task.columns, rows = task.numel / C;
  step_span(task, begin * C, end * C);
  const Bf16Pack forward{C, rows, task.tensor.theta, task.packed};
  const Bf16Pack transposed{rows, C, task.tensor.theta, task.packed_t};
  if (task.packed != nullptr) kernels.pack_turned(forward, begin / kPanel, begin / kPanel + 1);
  if (task.packed_t != nullptr) kernels.pack[0](transposed, begin / kDepthStep, ceil_div(end, kDepthStep));
}

inline void step_all(const std::vector<Task>& tasks) {
  std::vector<Piece> pieces;
  int64_t widest = 0;
  for (const Task& task : tasks) {
    if (task.numel == 0 || (!task.updated() && task.tensor.anchor == nullptr)) continue;
    const bool by_row = task.row_flags != nullptr || task.packs();
    const int64_t count = by_row ? task.numel / task.columns : task.numel;
    const int64_t step = task.row_flags != nullptr ? rows_per_piece(task) : task.packs() ? kPanel : kPiece;
    for (int64_t begin = 0; begin < count; begin += step) {
      pieces.push_back({&task, begin, std::min(begin + step, count)});
    }
    if (task.row_flags != nullptr) widest = std::max(widest, task.columns * task.element_size());
  }
  const std::vector<char> zero_row(static_cast<size_t>(widest), 0);
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const auto [task, begin, end] = pieces[p];
      if (task->row_flags != nullptr) {
        step_rows(*task, begin, end, zero_row.data());
      } else if (task->packs()) {
        step_panel(*task, begin, end);
      } else {
        step_span(*task, begin, end);
      }
    }
  });
}

}  // namespace smartcs::adamw
