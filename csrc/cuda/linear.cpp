// Binding of vitsparse::linear for CUDA tensors; the contract is vitsparse/ops/linear.py.
#include "kernels/cuda/linear.h"

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "csrc/cuda/tensors.h"

namespace vitsparse::binding {
namespace {

int checked_int(int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value < std::numeric_limits<int>::max() / 2, "linear: ", value, " rows or columns");
  return static_cast<int>(value);
}

// x as [batch, rows, inputs]: images of tokens where it has three dimensions, one list of rows otherwise.
cuda::View rows_of(const Tensor& x, const Tensor& input) {
  if (input.dim() == 3) return {x.mutable_data_ptr(), x.stride(0), x.stride(1)};
  return {x.mutable_data_ptr(), 0, input.dim() == 2 ? x.stride(0) : x.size(x.dim() - 1)};
}

Tensor linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, std::string activation) {
  const int64_t dims = input.dim();
  STD_TORCH_CHECK(dims >= 1, "x: expected at least one dimension");
  STD_TORCH_CHECK(activation == "none" || activation == "gelu", "activation: expected 'none' or 'gelu'");
  const Guard guard(input.get_device_index());
  // With four dimensions and more only contiguous rows are one list.
  const Tensor x = with_dense_rows(dims == 2 || dims == 3 ? input : torch::stable::contiguous(input), input, "x", dims);
  const Tensor w = with_dense_rows(weight, input, "weight", 2);
  const int64_t inputs = x.size(dims - 1), outputs = w.size(0);
  STD_TORCH_CHECK(w.size(1) == inputs, "weight: expected [outputs, ", inputs, "]");
  const bool per_row = bias && bias->dim() == 2;
  std::optional<Tensor> b;
  if (bias) b = with_dense_rows(*bias, input, "bias", per_row ? 2 : 1);
  STD_TORCH_CHECK(!b || (b->size(per_row) == outputs && (!per_row || (dims >= 2 && b->size(0) == x.size(dims - 2)))),
                  "bias: expected [", outputs, "] or [rows, ", outputs, "]");

  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = outputs;
  const Tensor out = torch::stable::new_empty(x, shape);
  if (out.numel() == 0) return out;
  const int64_t rows = dims == 3 || per_row ? x.size(dims - 2) : out.numel() / outputs;
  const int64_t images = out.numel() / outputs / rows;
  checked_int(images * rows);
  cuda::View src = rows_of(x, input);
  if (dims > 3) src.image_stride = rows * inputs;
  const cuda::LinearParams params{src, {out.mutable_data_ptr(), rows * outputs, outputs}, w.const_data_ptr(), w.stride(0),
                                  data_or_null(b), per_row ? b->stride(0) : 0, checked_int(images), checked_int(rows),
                                  checked_int(inputs), checked_int(outputs), activation == "gelu", false};
  check(cuda::linear(params, context_of(x)), "linear");
  return out;
}

}  // namespace
}  // namespace vitsparse::binding

VITSPARSE_REGISTER_CUDA(m) { m.impl("linear", TORCH_BOX(&vitsparse::binding::linear)); }
