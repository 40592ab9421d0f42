// Binding of vitsparse::sum_norm for CPU tensors; the contract is vitsparse/ops/sum_norm.py.
#include "kernels/cpu/sum_norm.h"

#include <torch/csrc/stable/library.h>

#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "csrc/cpu/tensors.h"

namespace vitsparse::binding {
namespace {

std::tuple<Tensor, Tensor> sum_norm(std::vector<Tensor> senders, const std::optional<Tensor>& offset, double eps) {
  STD_TORCH_CHECK(!senders.empty(), "senders: expected at least one");
  std::vector<Tensor> dense;
  for (const Tensor& sender : senders) dense.push_back(with_dense_rows(sender, "senders", 3));
  const Tensor& first = dense.front();
  const int64_t images = first.size(0), rows = first.size(1), width = first.size(2);
  std::vector<cpu::Rows> sources;
  for (const Tensor& sender : dense) {
    STD_TORCH_CHECK(sender.size(0) == images && sender.size(1) == rows && sender.size(2) == width,
                    "senders: expected one shape");
    sources.push_back(rows_of(sender));
  }
  const Tensor constant = offset ? contiguous_floats(*offset, "offset") : first;
  STD_TORCH_CHECK(!offset || (constant.dim() == 2 && constant.size(0) == rows && constant.size(1) == width),
                  "offset: expected [", rows, ", ", width, "]");
  const Tensor sum = new_rows(first, images, rows, width), normed = new_rows(first, images, rows, width);
  if (sum.numel() == 0) return {sum, normed};
  const auto count = static_cast<int64_t>(sources.size());
  std::vector<int64_t> all(sources.size());
  std::iota(all.begin(), all.end(), 0);
  const cpu::SumPart part{all.data(), count, nullptr, 0, offset ? data_of(constant) : nullptr, width,
                          mutable_rows_of(sum), mutable_rows_of(normed)};
  const cpu::SumNorm op{sources.data(), count, &part, 1, images, rows, width, static_cast<float>(eps)};
  run_tasks(op, cpu::sum_norm);
  return {sum, normed};
}

}  // namespace
}  // namespace vitsparse::binding

STABLE_TORCH_LIBRARY_IMPL(vitsparse, CPU, m) { m.impl("sum_norm", TORCH_BOX(&vitsparse::binding::sum_norm)); }
