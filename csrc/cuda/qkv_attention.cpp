// Binding of vitsparse::qkv_attention for CUDA tensors; the contract is vitsparse/ops/qkv_attention.py.
#include "kernels/cuda/qkv_attention.h"

#include "csrc/cuda/heads.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/linear.h"

namespace vitsparse::binding {
namespace {

// The same in two launches, q, k and v going through memory.
void tiled(const cuda::QkvAttentionParams& op, const Tensor& out, const cuda::Context& context) {
  const int64_t width = int64_t{op.heads} * op.head_dim;
  const Tensor qkv = torch::stable::new_empty(out, {op.batch, op.tokens, 3 * width});
  const cuda::View all = {qkv.mutable_data_ptr(), op.tokens * 3 * width, 3 * width};
  check(cuda::linear({op.src, all, op.weight, op.weight_stride, op.bias, 0, op.batch, op.tokens, op.inputs,
                      static_cast<int>(3 * width), false, false}, context), "qkv_attention");
  const auto part = [&](int64_t i) {
    const auto bytes = static_cast<int64_t>(out.element_size()) * i * width;
    return cuda::View{static_cast<char*>(all.data) + bytes, all.image_stride, all.row_stride};
  };
  check(cuda::attention({part(0), op.dst, part(1), part(2), op.head_keep, op.batch, op.heads, op.head_dim, op.tokens,
                         op.tokens, op.scale}, context), "qkv_attention");
}

Tensor qkv_attention(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t heads,
                     double scale, const std::optional<Tensor>& head_keep) {
  const Guard guard(input.get_device_index());
  const Tensor x = with_dense_rows(input, input, "x", 3), w = with_dense_rows(weight, input, "weight", 2);
  const int64_t images = x.size(0), tokens = x.size(1), inputs = x.size(2), width = w.size(0) / 3;
  STD_TORCH_CHECK(heads > 0 && w.size(0) > 0 && w.size(0) % (3 * heads) == 0 && w.size(1) == inputs,
                  "weight: expected [3 * heads * columns, ", inputs, "] of ", heads, " heads");
  STD_TORCH_CHECK(width / heads <= cuda::max_head_dim, "qkv_attention: expected heads of at most ", cuda::max_head_dim,
                  " columns, found ", width / heads);
  std::optional<Tensor> b;
  if (bias) b = with_dense_rows(*bias, input, "bias", 1);
  STD_TORCH_CHECK(!b || b->size(0) == 3 * width, "bias: expected [", 3 * width, "]");
  const Tensor out = torch::stable::new_empty(x, {images, tokens, width});
  if (out.numel() == 0) return out;
  size_of(images * heads, "heads of all images");
  const auto keep = checked_keep(head_keep, x, images, heads);
  const cuda::QkvAttentionParams params{view_of(x), view_of(out), w.const_data_ptr(), w.stride(0), data_or_null(b),
                                        bytes_of(keep), size_of(images, "images"), size_of(heads, "heads"),
                                        size_of(width / heads, "columns"), size_of(tokens, "tokens"),
                                        size_of(inputs, "inputs"), static_cast<float>(scale)};
  const cuda::Context context = context_of(x);
  if (cuda::qkv_attention_fits(params, context)) {
    check(cuda::qkv_attention(params, context), "qkv_attention");
  } else {
    tiled(params, out, context);
  }
  return out;
}

}  // namespace
}  // namespace vitsparse::binding

VITSPARSE_REGISTER_CUDA(m) { m.impl("qkv_attention", TORCH_BOX(&vitsparse::binding::qkv_attention)); }
