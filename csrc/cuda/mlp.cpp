// Binding of vitsparse::mlp for CUDA tensors; the contract is vitsparse/ops/mlp.py.
#include "kernels/cuda/mlp.h"

#include <tuple>

#include "csrc/cuda/sums.h"
#include "kernels/cuda/linear.h"

namespace vitsparse::binding {
namespace {

// The parts of the slices, added up.
void add_slices(const cuda::MlpParams& mlp, const Tensor& parts, const Tensor& out, const cuda::Context& context) {
  cuda::SumNormParams params{};
  for (int i = 0; i < mlp.slices; ++i) params.sources[i] = view_of(torch::stable::select(parts, 0, i));
  params.count = mlp.slices;
  params.sum = view_of(out);
  params.batch = mlp.input.batch;
  params.rows = mlp.input.rows;
  params.width = mlp.outputs;
  check(cuda::sum_norm(params, context), "mlp: sum of the slices");
}

void run_fused(cuda::MlpParams& params, const Tensor& out, const cuda::Context& context) {
  if (params.slices == 1) {
    params.dst = view_of(out);
    return check(cuda::mlp(params, context), "mlp");
  }
  const Tensor parts = torch::stable::new_empty(out, {params.slices, out.size(0), out.size(1), out.size(2)});
  params.dst = view_of(torch::stable::select(parts, 0, 0));
  params.slice_stride = parts.stride(0);
  check(cuda::mlp(params, context), "mlp");
  add_slices(params, parts, out, context);
}

// Where no tile fits: one step after the other.
void run_steps(const cuda::MlpParams& params, const Senders& senders, const Tensor& out, const cuda::Context& context) {
  const Tensor normed = senders.empty(params.input.width), hidden = senders.empty(params.hidden);
  cuda::SumNormParams input = params.input;
  input.normed = view_of(normed);
  check(cuda::sum_norm(input, context), "mlp: sum_norm");
  const int batch = input.batch, rows = input.rows;
  check(cuda::linear({view_of(normed), view_of(hidden), params.weight1, params.weight1_stride, params.bias1, 0, batch, rows,
                      input.width, params.hidden, true, false}, context), "mlp: first product");
  check(cuda::linear({view_of(hidden), view_of(out), params.weight2, params.weight2_stride, params.bias2, 0, batch, rows,
                      params.hidden, params.outputs, false, false}, context), "mlp: second product");
}

void require_shape(const Tensor& x, int64_t rows, int64_t columns, const char* what) {
  STD_TORCH_CHECK(x.size(0) == rows && (x.dim() == 1 || x.size(1) == columns), what, ": expected the shape of its contract");
}

std::tuple<Tensor, Tensor> mlp(std::vector<Tensor> tensors, const std::optional<Tensor>& offset, double eps,
                               const Tensor& weight1, const Tensor& bias1, const Tensor& weight2,
                               const std::optional<Tensor>& bias2) {
  const Guard guard(weight1.get_device_index());
  const Senders senders(tensors, offset);
  const Tensor w1 = with_dense_rows(weight1, weight1, "weight1", 2), w2 = with_dense_rows(weight2, w1, "weight2", 2);
  const Tensor b1 = with_dense_rows(bias1, w1, "bias1", 1);
  std::optional<Tensor> b2;
  if (bias2) b2 = with_dense_rows(*bias2, w1, "bias2", 1);
  const int64_t hidden = w1.size(0), outputs = w2.size(0);
  const Tensor total = senders.empty(senders.width), out = senders.empty(outputs);
  STD_TORCH_CHECK(total.scalar_type() == w1.scalar_type(), "weight1: expected the dtype of the senders");
  require_shape(w1, hidden, senders.width, "weight1");
  require_shape(b1, hidden, 0, "bias1");
  require_shape(w2, outputs, hidden, "weight2");
  if (b2) require_shape(*b2, outputs, 0, "bias2");
  STD_TORCH_CHECK(std::max(hidden, outputs) < std::numeric_limits<int>::max() / 2, "mlp: too large");
  if (senders.images * senders.rows == 0) return {out, total};

  const cuda::Context context = context_of(total);
  cuda::MlpParams params{senders.params(eps), {}, w1.const_data_ptr(), b1.const_data_ptr(), w2.const_data_ptr(),
                         data_or_null(b2), w1.stride(0), w2.stride(0), static_cast<int>(hidden),
                         static_cast<int>(outputs)};
  senders.set(params.input, total, context);
  params.input.sum = view_of(total);
  if (cuda::mlp_fits(params, context)) {
    if (senders.tensors.size() <= static_cast<size_t>(cuda::max_sources)) params.slices = cuda::mlp_slices(params, context);
    run_fused(params, out, context);
  } else {
    run_steps(params, senders, out, context);
  }
  return {out, total};
}

}  // namespace
}  // namespace vitsparse::binding

VITSPARSE_REGISTER_CUDA(m) { m.impl("mlp", TORCH_BOX(&vitsparse::binding::mlp)); }
