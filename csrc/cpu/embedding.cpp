// embedding on the CPU: checks, allocation, threads. Arithmetic: embedding_kernel.cpp.
#include "embedding.h"

#include <ATen/ops/from_blob.h>

#include "common.h"
#include "row_groups.h"

namespace smartcs {
namespace {

constexpr const char* kOp = "embedding";

const int64_t* checked_ids(const at::Tensor& ids, int64_t tokens, int64_t rows, const char* name) {
  check_like(ids, at::kLong, {tokens}, kOp, name);
  const int64_t* data = ids.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < tokens; ++t) {
    TORCH_CHECK_INDEX(data[t] >= 0 && data[t] < rows, kOp, ": ", name, "[", t, "] is ", data[t], ", but its table has ",
                      rows, " rows");
  }
  return data;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> embedding_fwd(
    const at::Tensor& input_ids, const at::Tensor& token_type_ids, const at::Tensor& position_ids,
    const at::Tensor& word, const at::Tensor& token_type, const at::Tensor& position, const at::Tensor& weight,
    const at::Tensor& bias, const std::optional<at::Tensor>& perturbation, double eps, double dropout_p, int64_t seed,
    int64_t stream, const std::optional<at::Tensor>& counter_offset) {
  check_cpu_contiguous(word, kOp, "word");
  TORCH_CHECK(word.dim() == 2 && word.size(1) > 0, kOp, ": word has shape ", word.sizes(), ", expected (rows, C)");
  TORCH_CHECK(input_ids.dim() == 1 && token_type.dim() == 2 && position.dim() == 2, kOp,
              ": expected input_ids of shape (T,) and tables of shape (rows, C)");
  const Storage storage = storage_of(word, kOp);
  const at::ScalarType dtype = word.scalar_type();
  const int64_t tokens = input_ids.size(0), columns = word.size(1);
  check_like(token_type, dtype, {token_type.size(0), columns}, kOp, "token_type");
  check_like(position, dtype, {position.size(0), columns}, kOp, "position");
  check_like(weight, dtype, {columns}, kOp, "weight");
  check_like(bias, dtype, {columns}, kOp, "bias");
  if (perturbation.has_value()) check_like(*perturbation, dtype, {tokens, columns}, kOp, "perturbation");
  EmbeddingForward args;
  args.columns = columns;
  args.eps = eps;
  args.dropout = make_dropout(dropout_p, seed, stream, counter_offset, kOp);
  args.input_ids = checked_ids(input_ids, tokens, word.size(0), "input_ids");
  args.token_type_ids = checked_ids(token_type_ids, tokens, token_type.size(0), "token_type_ids");
  args.position_ids = checked_ids(position_ids, tokens, position.size(0), "position_ids");
  args.word = word.const_data_ptr();
  args.token_type = token_type.const_data_ptr();
  args.position = position.const_data_ptr();
  args.weight = weight.const_data_ptr();
  args.bias = bias.const_data_ptr();
  args.perturbation = data_or_null(perturbation);
  at::Tensor y = empty({tokens, columns}, dtype), h = empty({tokens, columns}, dtype);
  at::Tensor mean = empty({tokens}, compute_type(word)), rstd = empty({tokens}, compute_type(word));
  args.y = y.data_ptr();
  args.h = h.data_ptr();
  args.mean = mean.data_ptr();
  args.rstd = rstd.data_ptr();
  const auto kernel = embedding_kernels().forward[storage];
  at::parallel_for(0, tokens, grain(columns), [&](int64_t begin, int64_t end) {
    const auto keep = keep_row(columns);
    kernel(args, keep.get(), begin, end);
  });
  return {y, h, mean, rstd};
}

constexpr int64_t kMaxElements = int64_t{1} << 48;

// Zeros that cost nothing where they are never written: fresh pages of the operating system's are zero already, while
// filling them would touch every one.
at::Tensor zeros(int64_t rows, int64_t columns, at::ScalarType dtype) {
  constexpr size_t kAlignment = 64;
  TORCH_CHECK(rows <= kMaxElements / columns, kOp, ": a gradient of ", rows, " rows and ", columns,
              " columns is larger than any memory");
  const size_t bytes = static_cast<size_t>(rows * columns) * c10::elementSize(dtype);
  void* memory = std::calloc(bytes + kAlignment, 1);
  TORCH_CHECK(memory != nullptr, kOp, ": out of memory for a gradient of ", bytes, " bytes");
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  void* aligned = static_cast<char*>(memory) + (kAlignment - address % kAlignment) % kAlignment;
  return at::from_blob(
      aligned, {rows, columns}, [memory](void*) { std::free(memory); }, at::TensorOptions().dtype(dtype));
}

// The gradient of one table: a dense zero tensor with the used rows added; no rows where it is not wanted.
at::Tensor scattered(Storage storage, const at::Tensor& grad_h, const int64_t* ids, int64_t rows, bool wanted) {
  const int64_t tokens = grad_h.size(0), columns = grad_h.size(1);
  if (!wanted) return empty({0, columns}, grad_h.scalar_type());
  at::Tensor table = zeros(rows, columns, compute_type(grad_h));
  const auto kernel = embedding_kernels().scatter_add[storage];
  at::parallel_for(0, ceil_div(columns, 64), grain(64 * tokens), [&](int64_t begin, int64_t end) {
    kernel(grad_h.const_data_ptr(), ids, tokens, columns, table.data_ptr(), begin * 64, std::min(end * 64, columns));
  });
  return table.to(grad_h.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> embedding_bwd(
    const at::Tensor& grad_y, const at::Tensor& input_ids, const at::Tensor& token_type_ids,
    const at::Tensor& position_ids, const at::Tensor& h, const at::Tensor& mean, const at::Tensor& rstd,
    const at::Tensor& weight, int64_t words, int64_t token_types, int64_t positions, double dropout_p, int64_t seed,
    int64_t stream, bool need_word, bool need_token_type, bool need_position, bool parameter_grads,
    bool need_perturbation, const std::optional<at::Tensor>& counter_offset) {
  check_cpu_contiguous(h, kOp, "h");
  TORCH_CHECK(h.dim() == 2 && h.size(1) > 0, kOp, ": h has shape ", h.sizes(), ", expected (T, C) with C > 0");
  const Storage storage = storage_of(h, kOp);
  const at::ScalarType dtype = h.scalar_type();
  const int64_t tokens = h.size(0), columns = h.size(1);
  check_like(grad_y, dtype, h.sizes(), kOp, "grad_y");
  check_like(mean, compute_type(h), {tokens}, kOp, "mean");
  check_like(rstd, compute_type(h), {tokens}, kOp, "rstd");
  check_like(weight, dtype, {columns}, kOp, "weight");
  TORCH_CHECK(words >= 0 && token_types >= 0 && positions >= 0, kOp, ": tables have ", words, ", ", token_types,
              " and ", positions, " rows, expected no negative number");
  const int64_t* input = checked_ids(input_ids, tokens, words, "input_ids");
  const int64_t* type = checked_ids(token_type_ids, tokens, token_types, "token_type_ids");
  const int64_t* place = checked_ids(position_ids, tokens, positions, "position_ids");
  const EmbeddingKernels& kernels = embedding_kernels();
  const int64_t count = ceil_div(tokens, kernels.rows_per_partial);
  at::Tensor grad_h = empty(h.sizes(), dtype);
  at::Tensor partials = empty({2, parameter_grads ? count : 0, columns}, compute_type(h));
  const EmbeddingBackward args{tokens,
                               columns,
                               make_dropout(dropout_p, seed, stream, counter_offset, kOp),
                               grad_y.const_data_ptr(),
                               h.const_data_ptr(),
                               mean.const_data_ptr(),
                               rstd.const_data_ptr(),
                               weight.const_data_ptr(),
                               grad_h.data_ptr(),
                               data_or_null(partials)};
  const auto kernel = kernels.backward[storage];
  at::parallel_for(0, count, grain(columns * kernels.rows_per_partial), [&](int64_t begin, int64_t end) {
    const auto keep = keep_row(columns);
    kernel(args, keep.get(), begin, end);
  });
  std::array<at::Tensor, 2> sums;
  for (int i = 0; i < 2; ++i) {
    sums[i] = parameter_grads
                  ? summed(kernels.sum_partials[storage], partials[i].const_data_ptr(), count, columns, dtype)
                  : empty({0}, dtype);
  }
  return {scattered(storage, grad_h, input, words, need_word),
          scattered(storage, grad_h, type, token_types, need_token_type),
          scattered(storage, grad_h, place, positions, need_position),
          sums[0],
          sums[1],
          need_perturbation ? grad_h : empty({0, columns}, dtype)};
}

// What `scattered` gives, by the rows in use: sums in the same order, so equal to the last bit.
std::tuple<at::Tensor, at::Tensor> embedding_rows(const at::Tensor& grad_h, const at::Tensor& ids, int64_t rows) {
  check_cpu_contiguous(grad_h, kOp, "grad_h");
  TORCH_CHECK(grad_h.dim() == 2 && grad_h.size(1) > 0, kOp, ": grad_h has shape ", grad_h.sizes(),
              ", expected (T, C) with C > 0");
  const int64_t tokens = grad_h.size(0);
  const int64_t* row = checked_ids(ids, tokens, rows, "ids");
  const RowGroups groups(row, tokens);
  at::Tensor used = empty({groups.size()}, at::kLong);
  std::vector<int64_t> group_of(static_cast<size_t>(tokens));
  for (int64_t g = 0; g < groups.size(); ++g) {
    used.data_ptr<int64_t>()[g] = row[groups.order[groups.offsets[g]]];
    for (int64_t k = groups.offsets[g]; k < groups.offsets[g + 1]; ++k) group_of[groups.order[k]] = g;
  }
  return {used, scattered(storage_of(grad_h, kOp), grad_h, group_of.data(), groups.size(), true)};
}

}  // namespace

TORCH_LIBRARY_IMPL(smartcs, CPU, m) {
  m.impl("embedding_fwd", embedding_fwd);
  m.impl("embedding_bwd", embedding_bwd);
  m.impl("embedding_rows", embedding_rows);
}

}  // namespace smartcs
