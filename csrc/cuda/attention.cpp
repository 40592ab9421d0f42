// Binding of vitsparse::attention for CUDA tensors; the contract is vitsparse/ops/attention.py.
#include "kernels/cuda/attention.h"

#include <algorithm>

#include "csrc/cuda/heads.h"

namespace vitsparse::binding {
namespace {

Tensor attention(const Tensor& queries, const Tensor& keys, const Tensor& values, int64_t heads, double scale,
                 const std::optional<Tensor>& head_keep) {
  const Guard guard(queries.get_device_index());
  const Tensor q = with_dense_rows(queries, queries, "q", 3), k = with_dense_rows(keys, queries, "k", 3);
  const Tensor v = with_dense_rows(values, queries, "v", 3);
  const int64_t images = std::max({q.size(0), k.size(0), v.size(0)}), width = q.size(2);
  for (const Tensor& x : {q, k, v})
    STD_TORCH_CHECK((x.size(0) == images || x.size(0) == 1) && x.size(2) == width,
                    "q, k, v: expected one width and one batch (or 1)");
  STD_TORCH_CHECK(heads > 0 && width % heads == 0, "heads: expected a divisor of the width ", width);
  STD_TORCH_CHECK(k.size(1) == v.size(1) && k.size(1) > 0, "k, v: expected the same number of tokens, not 0");
  STD_TORCH_CHECK(width / heads <= cuda::max_head_dim, "attention: expected heads of at most ", cuda::max_head_dim,
                  " columns, found ", width / heads);
  const Tensor out = torch::stable::new_empty(q, {images, q.size(1), width});
  if (out.numel() == 0) return out;
  size_of(images * heads, "heads of all images");
  const auto keep = checked_keep(head_keep, q, images, heads);
  const cuda::AttentionParams params{view_of(q), view_of(out), view_of(k), view_of(v), bytes_of(keep),
                                     size_of(images, "images"), size_of(heads, "heads"),
                                     size_of(width / heads, "columns"), size_of(q.size(1), "queries"),
                                     size_of(k.size(1), "keys"), static_cast<float>(scale)};
  check(cuda::attention(params, context_of(q)), "attention");
  return out;
}

}  // namespace
}  // namespace vitsparse::binding

VITSPARSE_REGISTER_CUDA(m) { m.impl("attention", TORCH_BOX(&vitsparse::binding::attention)); }
