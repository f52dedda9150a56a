// The schemas of every raw op: the one contract all backends implement. Autograd is added in smartcs/ops/<op>.py, which
// also documents shapes and formulas; `_bwd` ops return empty tensors for gradients that were not asked for.
//
// counter_offset, two int64 on the tensors' device, is read when the op runs, so that a captured CUDA graph draws other
// numbers at every replay. The first is added to `stream`, modulo 2^64, the second to the number of every row
// (attention: of every token), modulo 2^32, so that a part of a batch draws the numbers that it has in the whole.
#include <torch/library.h>

#include <string>

#include "cpu/isa.h"

TORCH_LIBRARY(smartcs, m) {
  m.def(
      "adamw_step(Tensor(a!)[] params, Tensor?[] grads, Tensor?[] grad_rows, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, Tensor(e!)[] anchors, Tensor(f!)[] packed, "
      "Tensor(g!)[] packed_t, Tensor(h!)[] row_flags, float[] lr, float[] beta1, "
      "float[] beta2, float[] eps, float[] weight_decay, float? max_grad_norm, float anchor_weight, "
      "Tensor? schedule=None) -> Tensor norm");

  m.def(
      "attention_fwd(Tensor qkv, Tensor cu_seqlens, SymInt max_seqlen, float scale, float dropout_p, "
      "SymInt seed, SymInt stream, Tensor? counter_offset=None) -> (Tensor out, Tensor lse)");
  m.def(
      "attention_bwd(Tensor grad_out, Tensor qkv, Tensor lse, Tensor cu_seqlens, SymInt max_seqlen, "
      "float scale, float dropout_p, SymInt seed, SymInt stream, Tensor? counter_offset=None) -> Tensor grad_qkv");

  m.def(
      "add_layer_norm_fwd(Tensor x, Tensor? input_bias, Tensor residual, Tensor weight, Tensor bias, "
      "float eps, float dropout_p, SymInt seed, SymInt stream, Tensor? counter_offset=None)"
      " -> (Tensor y, Tensor h, Tensor mean, Tensor rstd)");
  m.def(
      "add_layer_norm_bwd(Tensor grad_y, Tensor h, Tensor mean, Tensor rstd, Tensor weight, "
      "float dropout_p, SymInt seed, SymInt stream, bool parameter_grads, Tensor? counter_offset=None)"
      " -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias, Tensor grad_input_bias)");

  m.def("bias_gelu_fwd(Tensor x, Tensor? bias) -> Tensor y");
  m.def(
      "bias_gelu_bwd(Tensor grad_y, Tensor x, Tensor? bias, bool bias_grad)"
      " -> (Tensor grad_x, Tensor grad_bias)");

  m.def(
      "embedding_fwd(Tensor input_ids, Tensor token_type_ids, Tensor position_ids, Tensor word, "
      "Tensor token_type, Tensor position, Tensor weight, Tensor bias, Tensor? perturbation, float eps, "
      "float dropout_p, SymInt seed, SymInt stream, Tensor? counter_offset=None)"
      " -> (Tensor y, Tensor h, Tensor mean, Tensor rstd)");
  m.def(
      "embedding_bwd(Tensor grad_y, Tensor input_ids, Tensor token_type_ids, Tensor position_ids, "
      "Tensor h, Tensor mean, Tensor rstd, Tensor weight, SymInt words, SymInt token_types, "
      "SymInt positions, float dropout_p, SymInt seed, SymInt stream, bool need_word, "
      "bool need_token_type, bool need_position, bool parameter_grads, bool need_perturbation, "
      "Tensor? counter_offset=None)"
      " -> (Tensor grad_word, Tensor grad_token_type, Tensor grad_position, Tensor grad_weight, Tensor grad_bias, "
      "Tensor grad_perturbation)");

  // A table's gradient by rows: those that occur in ids, ascending, and the sums of theirs.
  m.def("embedding_rows(Tensor grad_h, Tensor ids, SymInt rows) -> (Tensor used, Tensor sums)");

  m.def("linear_fwd(Tensor x, Tensor weight, Tensor? bias) -> Tensor y");
  m.def(
      "linear_bwd(Tensor grad_y, Tensor? x, Tensor? weight, bool need_x, bool need_weight, bool need_bias)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  // The library behind linear on this CPU.
  m.def("linear_library() -> str");

  // linear with bf16 operands and float32 sums, the weight packed (csrc/cpu/bf16_layout.h).
  m.def("pack_weight(Tensor weight, bool transposed) -> Tensor packed");
  m.def(
      "linear_bf16_fwd(Tensor x, Tensor packed, SymInt outputs, Tensor? bias, bool gelu, bool keep_x, bool keep_z, "
      "ScalarType out_dtype) -> (Tensor y, Tensor x_low, Tensor z)");
  m.def(
      "linear_bf16_bwd(Tensor grad_y, Tensor? x_low, Tensor? z, Tensor? packed_t, SymInt inputs, SymInt outputs, "
      "bool need_x, bool need_weight, bool need_bias, ScalarType grad_x_dtype)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  // The instructions that multiply bf16 faster than float32 on this CPU, or "none: why"; and a way to choose.
  m.def("bf16_products() -> str");
  m.def("set_bf16_products(str name) -> ()");

  m.def(
      "perturb_noise(Tensor like, float std, SymInt seed, SymInt stream, Tensor? counter_offset=None)"
      " -> Tensor noise");
  m.def(
      "perturb_step(Tensor v, Tensor g, Tensor? cu_seqlens, str update, str norm, float step_size, float radius, "
      "float norm_eps) -> (Tensor moved, Tensor statistics)");

  m.def("symmetric_kl_fwd(Tensor a, Tensor b, bool bernoulli) -> Tensor loss");
  m.def(
      "symmetric_kl_bwd(Tensor grad_loss, Tensor a, Tensor b, bool bernoulli, bool detach_targets, "
      "bool need_a, bool need_b) -> (Tensor grad_a, Tensor grad_b)");

  // The instruction set the CPU kernels run on, and a way to lower it (tests compare them all).
  m.def("instruction_set() -> str", []() -> std::string { return smartcs::isa_name(smartcs::active_isa()); });
  m.def("set_instruction_set(str name) -> ()", [](const std::string& name) {
    const char* problem = smartcs::set_active_isa(name.c_str());
    TORCH_CHECK(problem == nullptr, "set_instruction_set: '", name, "': ", problem);
  });
}
