// Binding of vitsparse::attention for CPU tensors; the contract is vitsparse/ops/attention.py.
#include "kernels/cpu/attention.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "csrc/cpu/tensors.h"

namespace vitsparse::binding {
namespace {

const bool* kept(const Tensor& head_keep, int64_t images, int64_t heads) {
  STD_TORCH_CHECK(head_keep.is_cpu() && head_keep.scalar_type() == torch::headeronly::ScalarType::Bool &&
                      head_keep.dim() == 2 && head_keep.size(0) == images && head_keep.size(1) == heads,
                  "head_keep: expected bool [", images, ", ", heads, "] in CPU memory");
  return static_cast<const bool*>(head_keep.const_data_ptr());
}

Tensor attention(const Tensor& queries, const Tensor& keys, const Tensor& values, int64_t heads, double scale,
                 const std::optional<Tensor>& head_keep) {
  const Tensor q = with_dense_rows(queries, "q", 3), k = with_dense_rows(keys, "k", 3);
  const Tensor v = with_dense_rows(values, "v", 3);
  const int64_t images = std::max({q.size(0), k.size(0), v.size(0)}), width = q.size(2);
  for (const Tensor& x : {q, k, v})
    STD_TORCH_CHECK((x.size(0) == images || x.size(0) == 1) && x.size(2) == width,
                    "q, k, v: expected one width and one batch (or 1)");
  STD_TORCH_CHECK(heads > 0 && width % heads == 0, "heads: expected a divisor of the width ", width);
  STD_TORCH_CHECK(k.size(1) == v.size(1) && k.size(1) > 0, "k, v: expected the same number of tokens, not 0");
  const Tensor out = new_rows(q, images, q.size(1), width);
  if (out.numel() == 0) return out;
  const Tensor keep = head_keep ? torch::stable::contiguous(*head_keep) : q;
  const cpu::Attention op{rows_of(q), rows_of(k), rows_of(v), mutable_rows_of(out), images, q.size(1), k.size(1),
                          heads, width / heads, static_cast<float>(scale),
                          head_keep ? kept(keep, images, heads) : nullptr};
  run_tasks(op, cpu::attention);
  return out;
}

}  // namespace
}  // namespace vitsparse::binding

STABLE_TORCH_LIBRARY_IMPL(vitsparse, CPU, m) { m.impl("attention", TORCH_BOX(&vitsparse::binding::attention)); }
