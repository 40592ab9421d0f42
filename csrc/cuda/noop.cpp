// Binding of vitsparse::noop for CUDA tensors; the contract is in vitsparse/ops/noop.py.
#include "csrc/cuda/tensors.h"
#include "kernels/cuda/noop.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
void run(const Tensor& x, const Tensor& out, cudaStream_t stream) {
  const vitsparse::NoopParams<T> params{static_cast<const T*>(x.data_ptr()), static_cast<T*>(out.data_ptr()), x.numel()};
  vitsparse::binding::check(vitsparse::cuda::launch_noop(params, stream), "vitsparse::noop");
}

Tensor noop(const Tensor& input) {
  const vitsparse::binding::Guard guard(input.get_device_index());
  const cudaStream_t stream = vitsparse::binding::stream_of(input);
  const Tensor x = torch::stable::contiguous(input);
  const Tensor out = torch::stable::empty_like(x);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run<float>(x, out, stream);
      break;
    case ScalarType::Double:
      run<double>(x, out, stream);
      break;
    case ScalarType::Half:
      run<__half>(x, out, stream);
      break;
    default:
      STD_TORCH_CHECK(false, "vitsparse::noop on CUDA takes float16, float32 or float64");
  }
  return out;
}

}  // namespace

VITSPARSE_REGISTER_CUDA(m) { m.impl("noop", TORCH_BOX(&noop)); }
