// Binding of vitsparse::sum_norm for CUDA tensors; the contract is vitsparse/ops/sum_norm.py.
#include <tuple>

#include "csrc/cuda/sums.h"

namespace vitsparse::binding {
namespace {

std::tuple<Tensor, Tensor> sum_norm(std::vector<Tensor> tensors, const std::optional<Tensor>& offset, double eps) {
  const Guard guard(tensors.empty() ? 0 : tensors.front().get_device_index());
  const Senders senders(tensors, offset);
  const Tensor sum = senders.empty(senders.width), normed = senders.empty(senders.width);
  if (sum.numel() == 0) return {sum, normed};
  const cuda::Context context = context_of(sum);
  cuda::SumNormParams params = senders.params(eps);
  senders.set(params, sum, context);
  params.sum = view_of(sum);
  params.normed = view_of(normed);
  check(cuda::sum_norm(params, context), "sum_norm");
  return {sum, normed};
}

}  // namespace
}  // namespace vitsparse::binding

VITSPARSE_REGISTER_CUDA(m) { m.impl("sum_norm", TORCH_BOX(&vitsparse::binding::sum_norm)); }
