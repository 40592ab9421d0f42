// Binding of vitsparse::apply_pattern for CUDA tensors; the contract is vitsparse/ops/apply_pattern.py.
#include "kernels/cuda/apply_pattern.h"

#include "csrc/cuda/tensors.h"

namespace vitsparse::binding {
namespace {

Tensor apply_pattern(const Tensor& weights, const Tensor& values) {
  const Guard guard(values.get_device_index());
  const Tensor pattern = torch::stable::contiguous(with_dense_rows(weights, values, "pattern", 3));
  const Tensor v = with_dense_rows(values, values, "v", 3);
  const int64_t heads = pattern.size(0), queries = pattern.size(1), keys = v.size(1), width = v.size(2);
  STD_TORCH_CHECK(pattern.size(2) == keys, "pattern: expected [heads, queries, ", keys, "]");
  STD_TORCH_CHECK(heads > 0 && width % heads == 0, "pattern: expected heads that divide the width ", width);
  const Tensor out = torch::stable::new_empty(v, {v.size(0), queries, width});
  if (out.numel() == 0) return out;
  constexpr int64_t most = 1 << 30;
  STD_TORCH_CHECK(v.size(0) * queries < most && keys < most && width < most, "apply_pattern: too many rows or columns");
  const cuda::ApplyPatternParams params{
      pattern.const_data_ptr(), view_of(v), view_of(out), static_cast<int>(v.size(0)), static_cast<int>(heads),
      static_cast<int>(width / heads), static_cast<int>(queries), static_cast<int>(keys)};
  check(cuda::apply_pattern(params, context_of(v)), "apply_pattern");
  return out;
}

}  // namespace
}  // namespace vitsparse::binding

VITSPARSE_REGISTER_CUDA(m) { m.impl("apply_pattern", TORCH_BOX(&vitsparse::binding::apply_pattern)); }
