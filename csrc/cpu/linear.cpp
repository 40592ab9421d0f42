// Binding of vitsparse::linear for CPU tensors; the contract is vitsparse/ops/linear.py.
#include "kernels/cpu/linear.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <vector>

#include "csrc/cpu/tensors.h"

namespace vitsparse::binding {
namespace {

Tensor packed_weight(const Tensor& weight) {
  const Tensor w = contiguous_floats(weight, "weight");
  STD_TORCH_CHECK(w.dim() == 2, "weight: expected two dimensions");
  const Tensor packed = torch::stable::new_empty(w, {cpu::packed_size(w.size(0), w.size(1))});
  cpu::pack_linear(data_of(w), w.size(0), w.size(1), mutable_data_of(packed));
  return packed;
}

Tensor linear_packed(const Tensor& input, const Tensor& weight, int64_t outputs, const std::optional<Tensor>& bias,
                     std::string activation) {
  const Tensor x = contiguous_floats(input, "x");
  const int64_t dims = x.dim();
  STD_TORCH_CHECK(dims >= 1 && outputs >= 0, "x: expected at least one dimension");
  STD_TORCH_CHECK(activation == "none" || activation == "gelu", "activation: expected 'none' or 'gelu'");
  const int64_t inputs = x.size(dims - 1);
  const Tensor packed = contiguous_floats(weight, "packed weight");
  STD_TORCH_CHECK(packed.numel() == cpu::packed_size(outputs, inputs), "weight: expected ",
                  cpu::packed_size(outputs, inputs), " packed values, found ", packed.numel());
  const bool per_row = bias && bias->dim() == 2;
  const Tensor b = bias ? contiguous_floats(*bias, "bias") : packed;
  const int64_t rows = per_row ? b.size(0) : 1;
  STD_TORCH_CHECK(!bias || (b.numel() == rows * outputs && (!per_row || (dims >= 2 && x.size(dims - 2) == rows))),
                  "bias: expected [", outputs, "] or [rows, ", outputs, "]");

  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = outputs;
  const Tensor out = torch::stable::new_empty(x, shape);
  if (out.numel() == 0) return out;
  const int64_t images = out.numel() / outputs / rows;
  const cpu::Linear op{{data_of(x), rows * inputs, inputs}, {mutable_data_of(out), rows * outputs, outputs},
                       images, rows, inputs, outputs, data_of(packed), bias ? data_of(b) : nullptr,
                       per_row ? outputs : 0,
                       activation == "gelu" ? cpu::Activation::gelu : cpu::Activation::none, false};
  run_tasks(op, cpu::linear);
  return out;
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, std::string activation) {
  return linear_packed(x, packed_weight(weight), weight.size(0), bias, activation);
}

}  // namespace
}  // namespace vitsparse::binding

STABLE_TORCH_LIBRARY_IMPL(vitsparse, CPU, m) {
  m.impl("linear", TORCH_BOX(&vitsparse::binding::linear));
  m.impl("linear_packed", TORCH_BOX(&vitsparse::binding::linear_packed));
}
