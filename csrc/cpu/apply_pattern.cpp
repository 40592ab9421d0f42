// Binding of vitsparse::apply_pattern for CPU tensors; the contract is vitsparse/ops/apply_pattern.py.
#include "kernels/cpu/apply_pattern.h"

#include <torch/csrc/stable/library.h>

#include "csrc/cpu/tensors.h"

namespace vitsparse::binding {
namespace {

Tensor apply_pattern(const Tensor& weights, const Tensor& values) {
  const Tensor pattern = contiguous_floats(weights, "pattern"), v = with_dense_rows(values, "v", 3);
  STD_TORCH_CHECK(pattern.dim() == 3 && pattern.size(2) == v.size(1), "pattern: expected [heads, queries, ", v.size(1),
                  "]");
  const int64_t heads = pattern.size(0), queries = pattern.size(1), width = v.size(2);
  STD_TORCH_CHECK(heads > 0 && width % heads == 0, "pattern: expected heads that divide the width ", width);
  const Tensor out = new_rows(v, v.size(0), queries, width);
  if (out.numel() == 0) return out;
  const cpu::ApplyPattern op{data_of(pattern), rows_of(v), mutable_rows_of(out), v.size(0), queries, v.size(1), heads,
                             width / heads};
  run_tasks(op, cpu::apply_pattern);
  return out;
}

}  // namespace
}  // namespace vitsparse::binding

STABLE_TORCH_LIBRARY_IMPL(vitsparse, CPU, m) { m.impl("apply_pattern", TORCH_BOX(&vitsparse::binding::apply_pattern)); }
