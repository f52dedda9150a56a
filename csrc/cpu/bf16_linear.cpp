// linear with bf16 operands and float32 sums on the CPU: checks, allocation, threads. Arithmetic: bf16_kernel.cpp,
// bf16_product.h, bf16_amx.cpp. A product is cut into rows and panels, never along its depth, so every result is
// bit-equal for any number of threads.
#include <string>

#include "bf16_engine.h"
#include "bf16_layout.h"
#include "common.h"

namespace smartcs {
namespace {

constexpr const char* kForward = "linear_bf16_fwd";
constexpr const char* kBackward = "linear_bf16_bwd";
constexpr const char* kPack = "pack_weight";

uint16_t* bits(const at::Tensor& tensor) {
  return static_cast<uint16_t*>(data_or_null(tensor));
}

const uint16_t* const_bits(const at::Tensor& tensor) {
  return static_cast<const uint16_t*>(tensor.const_data_ptr());
}

bool is_low(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kBFloat16;
}

void check_values(const at::Tensor& tensor, const char* op, const char* name) {
  check_cpu_contiguous(tensor, op, name);
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || is_low(tensor), op, ": ", name, " has dtype ", tensor.scalar_type(),
              ", expected float32 or bfloat16");
  TORCH_CHECK(tensor.dim() == 2, op, ": ", name, " has shape ", tensor.sizes(), ", expected two dimensions");
}

void check_result_dtype(at::ScalarType dtype, const char* op, const char* name) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, op, ": ", name, " is ", dtype,
              ", expected float32 or bfloat16");
}

// Beyond it the elements of a packed weight would not fit 64 bits; no side of a matrix comes near.
constexpr int64_t kMaxSide = int64_t{1} << 28;

void check_packed(const at::Tensor& packed, int64_t depth, int64_t columns, const char* op, const char* name) {
  check_cpu_contiguous(packed, op, name);
  TORCH_CHECK(depth <= kMaxSide && columns <= kMaxSide, op, ": a product of ", depth, " inputs and ", columns,
              " outputs, expected at most ", kMaxSide, " of each");
  const int64_t wanted = packed_elements(depth, columns);
  TORCH_CHECK(is_low(packed) && packed.dim() == 1 && packed.numel() == wanted, op, ": ", name, " is ",
              packed.scalar_type(), " of shape ", packed.sizes(), ", expected bfloat16 of shape [", wanted,
              "], as pack_weight makes it for ", depth, " inputs and ", columns, " outputs of the product");
}

// The left operand of a product; `memory` where it had to be copied.
struct Rows {
  const uint16_t* data;
  int64_t stride;
  std::unique_ptr<void, Free> memory = nullptr;
};

std::unique_ptr<void, Free> low_scratch(int64_t elements) {
  return scratch(elements * static_cast<int64_t>(sizeof(uint16_t)));
}

// y = A B + bias, or its GELU; z, where given, y before the GELU.
struct Result {
  at::Tensor y;  // (rows, columns), written
  const float* bias = nullptr;
  bool gelu = false;
  uint16_t* z = nullptr;
};

void multiply(const Bf16Engine& engine, const Rows& a, int64_t rows, const uint16_t* packed, int64_t depth,
              const Result& result) {
  const int64_t columns = result.y.size(1), count = panels(columns);
  if (rows == 0 || count == 0) return;
  const bool low = is_low(result.y), plain = !low && !result.gelu;
  char* y = static_cast<char*>(result.y.data_ptr());
  const int64_t y_size = result.y.element_size();
  // A task's rows stay in the second-level cache while the panels pass by; few rows are cut finer to occupy all
  // threads.
  constexpr int64_t kCacheBytes = 512 * 1024;
  int64_t task_rows = std::clamp(kCacheBytes / (2 * std::max<int64_t>(a.stride, 1)), int64_t{96}, int64_t{512});
  const int64_t threads = at::get_num_threads(), wanted = threads == 1 ? 1 : 4 * threads;
  task_rows = std::min(task_rows, ceil_div(rows, ceil_div(wanted, count)));
  task_rows = ceil_div(task_rows, engine.row_unit) * engine.row_unit;
  at::parallel_for(0, ceil_div(rows, task_rows) * count, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float c[kMaxRowUnit * kPanel], bias[kPanel] = {};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / count * task_rows, last = std::min(first + task_rows, rows);
      const int64_t column = task % count * kPanel, width = std::min(columns - column, kPanel);
      PanelProduct product{last - first,
                           depth,
                           a.data + first * a.stride,
                           a.stride,
                           packed + task % count * panel_elements(depth),
                           nullptr,
                           c,
                           kPanel};
      if (result.bias != nullptr) {
        std::copy_n(result.bias + column, width, bias);
        product.bias = bias;
      }
      if (plain && width == kPanel) {
        product.c = reinterpret_cast<float*>(y) + first * columns + column;
        product.c_stride = columns;
        engine.product(product);
        continue;
      }
      for (int64_t row = first; row < last; row += engine.row_unit) {
        product.rows = std::min(engine.row_unit, last - row);
        product.a = a.data + row * a.stride;
        engine.product(product);
        const int64_t at = row * columns + column;
        engine.kernels->store[low]({product.rows, width, c, result.gelu, result.z == nullptr ? nullptr : result.z + at,
                                    y + at * y_size, columns});
      }
    }
  });
}

// x (rows, columns) as the left operand: itself where it can be, else rounded or padded into `memory`, which is made
// here unless it is given.
Rows left_operand(const Bf16Engine& engine, const at::Tensor& x, uint16_t* memory) {
  const int64_t rows = x.size(0), columns = x.size(1), stride = padded_depth(columns);
  if (is_low(x) && stride == columns) return {const_bits(x), stride};
  Rows operand{memory, stride};
  if (columns == 0) return operand;  // and any number of rows
  if (memory == nullptr) {
    operand.memory = low_scratch(rows * stride);
    memory = static_cast<uint16_t*>(operand.memory.get());
    operand.data = memory;
  }
  at::parallel_for(0, rows, grain(columns), [&](int64_t begin, int64_t end) {
    if (!is_low(x)) return engine.kernels->round({columns, x.const_data_ptr<float>(), memory, stride}, begin, end);
    for (int64_t row = begin; row < end; ++row) {
      uint16_t* to = memory + row * stride;
      std::copy_n(const_bits(x) + row * columns, columns, to);
      std::fill(to + columns, to + stride, uint16_t{0});
    }
  });
  return operand;
}

at::Tensor pack_weight(const at::Tensor& weight, bool transposed) {
  check_cpu_contiguous(weight, kPack, "weight");
  TORCH_CHECK(weight.dim() == 2 && weight.scalar_type() == at::kFloat, kPack, ": weight is ", weight.scalar_type(),
              " of shape ", weight.sizes(), ", expected float32 of shape (C_out, C_in)");
  TORCH_CHECK(weight.size(0) <= kMaxSide && weight.size(1) <= kMaxSide, kPack, ": weight has shape ", weight.sizes(),
              ", expected at most ", kMaxSide, " on a side");
  const Bf16Engine engine = bf16_engine();
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const int64_t depth = transposed ? outputs : inputs, columns = transposed ? inputs : outputs;
  at::Tensor packed = empty({packed_elements(depth, columns)}, at::kBFloat16);
  const Bf16Pack args{depth, columns, weight.const_data_ptr(), bits(packed)};
  if (transposed) {
    at::parallel_for(0, ceil_div(depth, kDepthStep), grain(columns * kDepthStep),
                     [&](int64_t begin, int64_t end) { engine.kernels->pack[0](args, begin, end); });
  } else {
    at::parallel_for(0, panels(columns), grain(depth * kPanel),
                     [&](int64_t begin, int64_t end) { engine.kernels->pack_turned(args, begin, end); });
  }
  return packed;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_bf16_fwd(const at::Tensor& x, const at::Tensor& packed,
                                                               int64_t outputs, const std::optional<at::Tensor>& bias,
                                                               bool gelu, bool keep_x, bool keep_z,
                                                               at::ScalarType out_dtype) {
  check_values(x, kForward, "x");
  TORCH_CHECK(outputs >= 0, kForward, ": outputs is ", outputs, ", expected outputs >= 0");
  check_result_dtype(out_dtype, kForward, "out_dtype");
  const int64_t rows = x.size(0), inputs = x.size(1);
  check_packed(packed, inputs, outputs, kForward, "packed");
  if (bias.has_value()) check_like(*bias, at::kFloat, {outputs}, kForward, "bias");
  const Bf16Engine engine = bf16_engine();
  const bool copy = keep_x && !is_low(x), shared = copy && padded_depth(inputs) == inputs;
  at::Tensor x_low = copy ? empty(x.sizes(), at::kBFloat16) : empty({0}, at::kBFloat16);
  at::Tensor z = gelu && keep_z ? empty({rows, outputs}, at::kBFloat16) : empty({0}, at::kBFloat16);
  Result result{empty({rows, outputs}, out_dtype)};
  if (bias.has_value()) result.bias = bias->const_data_ptr<float>();
  result.gelu = gelu;
  if (gelu && keep_z) result.z = bits(z);
  const Rows a = left_operand(engine, x, shared ? bits(x_low) : nullptr);
  if (copy && !shared && inputs > 0) {
    for (int64_t row = 0; row < rows; ++row) std::copy_n(a.data + row * a.stride, inputs, bits(x_low) + row * inputs);
  }
  multiply(engine, a, rows, const_bits(packed), inputs, result);
  return {result.y, x_low, z};
}

void check_backward(const at::Tensor& grad_y, const std::optional<at::Tensor>& x_low,
                    const std::optional<at::Tensor>& z, const std::optional<at::Tensor>& packed_t, int64_t inputs,
                    int64_t outputs, bool need_x, bool need_weight, at::ScalarType grad_x_dtype) {
  TORCH_CHECK(x_low.has_value() || !need_weight, kBackward,
              ": x_low is None, expected a tensor for the gradient of weight");
  TORCH_CHECK(packed_t.has_value() || !need_x, kBackward,
              ": packed_t is None, expected a tensor for the gradient of x");
  TORCH_CHECK(inputs >= 0 && outputs >= 0, kBackward, ": inputs is ", inputs, " and outputs ", outputs,
              ", expected both >= 0");
  check_result_dtype(grad_x_dtype, kBackward, "grad_x_dtype");
  check_values(grad_y, kBackward, "grad_y");
  check_like(grad_y, grad_y.scalar_type(), {grad_y.size(0), outputs}, kBackward, "grad_y");
  if (z.has_value()) check_like(*z, at::kBFloat16, grad_y.sizes(), kBackward, "z");
  if (x_low.has_value()) check_like(*x_low, at::kBFloat16, {grad_y.size(0), inputs}, kBackward, "x_low");
  if (packed_t.has_value()) check_packed(*packed_t, outputs, inputs, kBackward, "packed_t");
}

// Of x_low and packed_t, only what a wanted gradient needs has to be there.
std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_bf16_bwd(
    const at::Tensor& grad_y, const std::optional<at::Tensor>& x_low, const std::optional<at::Tensor>& z,
    const std::optional<at::Tensor>& packed_t, int64_t inputs, int64_t outputs, bool need_x, bool need_weight,
    bool need_bias, at::ScalarType grad_x_dtype) {
  check_backward(grad_y, x_low, z, packed_t, inputs, outputs, need_x, need_weight, grad_x_dtype);
  const Bf16Engine engine = bf16_engine();
  const int64_t rows = grad_y.size(0), blocks = ceil_div(rows, kDepthStep);
  const bool as_given = is_low(grad_y) && !z.has_value() && padded_depth(outputs) == outputs;
  // What stays in scope frees its memory when it is used up, not at the end.
  Rows low{const_bits(grad_y), padded_depth(outputs)}, turned{nullptr, padded_depth(rows)};
  at::Tensor partials = empty({need_bias ? blocks : 0, outputs}, at::kFloat);
  Bf16Gradient args{rows,
                    outputs,
                    grad_y.const_data_ptr(),
                    static_cast<const uint16_t*>(data_or_null(z)),
                    nullptr,
                    low.stride,
                    nullptr,
                    static_cast<float*>(data_or_null(partials))};
  if (need_x && !as_given) {
    low.memory = low_scratch(rows * low.stride);
    low.data = args.low = static_cast<uint16_t*>(low.memory.get());
  }
  if (need_weight) {
    turned.memory = low_scratch(outputs * turned.stride);
    turned.data = args.turned = static_cast<uint16_t*>(turned.memory.get());
  }
  if (outputs > 0 && (args.low != nullptr || args.turned != nullptr || need_bias)) {
    at::parallel_for(0, blocks, grain(outputs * kDepthStep),
                     [&](int64_t begin, int64_t end) { engine.kernels->gradient[is_low(grad_y)](args, begin, end); });
  }
  Result grad_x{need_x ? empty({rows, inputs}, grad_x_dtype) : empty({0}, grad_x_dtype)};
  // NOLINTNEXTLINE(bugprone-unchecked-optional-access): checked above where need_x is
  if (need_x) multiply(engine, low, rows, const_bits(*packed_t), outputs, grad_x);
  low.memory.reset();
  Result grad_weight{need_weight ? empty({outputs, inputs}, at::kFloat) : empty({0}, at::kFloat)};
  if (need_weight && grad_weight.y.numel() > 0) {
    const auto packed = low_scratch(packed_elements(rows, inputs));
    uint16_t* x = static_cast<uint16_t*>(packed.get());
    at::parallel_for(0, blocks, grain(inputs * kDepthStep), [&](int64_t begin, int64_t end) {
      engine.kernels->pack[1]({rows, inputs, x_low->const_data_ptr(), x}, begin, end);
    });
    multiply(engine, turned, outputs, x, rows, grad_weight);
  }
  return {grad_x.y, grad_weight.y,
          need_bias ? summed(engine.kernels->sum_partials, partials.const_data_ptr(), blocks, outputs, at::kFloat)
                    : empty({0}, at::kFloat)};
}

}  // namespace

// No tensor among their arguments, so no device to dispatch on.
TORCH_LIBRARY_IMPL(smartcs, CompositeExplicitAutograd, m) {
  m.impl("bf16_products", bf16_products);
  m.impl("set_bf16_products", [](const std::string& name) {
    const char* problem = set_bf16_products(name.c_str());
    TORCH_CHECK(problem == nullptr, "set_bf16_products: '", name, "': ", problem);
  });
}

TORCH_LIBRARY_IMPL(smartcs, CPU, m) {
  m.impl("pack_weight", pack_weight);
  m.impl("linear_bf16_fwd", linear_bf16_fwd);
  m.impl("linear_bf16_bwd", linear_bf16_bwd);
}

}  // namespace smartcs
