// Binding of vitsparse::noop for CPU tensors. vitsparse/ops/noop.py owns the contract (schema, checks, fake, gradient);
// here only what memory safety needs is checked.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "kernels/cpu/noop.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 16;  // elements: below it a second thread costs more than it brings

template <typename T>
void run(const Tensor& x, const Tensor& out) {
  const vitsparse::NoopParams<T> params{static_cast<const T*>(x.data_ptr()), static_cast<T*>(out.data_ptr()), x.numel()};
  torch::stable::parallel_for(0, params.count, kGrain, [&params](int64_t begin, int64_t end) {
    vitsparse::cpu::noop(params, begin, end);
  });
}

Tensor noop(const Tensor& input) {
  const Tensor x = torch::stable::contiguous(input);
  const Tensor out = torch::stable::empty_like(x);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run<float>(x, out);
      break;
    case ScalarType::Double:
      run<double>(x, out);
      break;
    default:
      STD_TORCH_CHECK(false, "vitsparse::noop on CPU takes float32 or float64");
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitsparse, CPU, m) { m.impl("noop", TORCH_BOX(&noop)); }
