// The emulated device for torch: its settings, and the contexts of launches on it.
#include <algorithm>

#include "csrc/cuda/device.h"

namespace vitsparse::binding {
namespace {

using torch::headeronly::ScalarType;

emulator::Device device;

void configure(int64_t level, bool half_accumulate, int64_t multiprocessors, int64_t shared_limit, int64_t seed,
               int64_t seconds) {
  device = {static_cast<int>(level), half_accumulate, static_cast<int>(multiprocessors), static_cast<int>(shared_limit),
            static_cast<uint64_t>(seed), static_cast<int>(seconds)};
}

cuda::Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return cuda::Dtype::float32;
    case ScalarType::Half: return cuda::Dtype::float16;
    case ScalarType::BFloat16:
      STD_TORCH_CHECK(device.level >= 80, "vitsparse: bfloat16 needs compute capability 8.0; use float16 here");
      return cuda::Dtype::bfloat16;
    default: STD_TORCH_CHECK(false, "vitsparse: the cuda backend takes float16, bfloat16 or float32");
  }
}

}  // namespace

// A launch takes the stream for the device.
cudaStream_t stream_of(const Tensor&) { return reinterpret_cast<cudaStream_t>(&device); }

cuda::Context context_of(const Tensor& x) {
  return {stream_of(x), static_cast<cuda::Level>(device.level), dtype_of(x), device.half_accumulate,
          device.multiprocessors, device.shared_limit};
}

}  // namespace vitsparse::binding

STABLE_TORCH_LIBRARY_FRAGMENT(vitsparse_emulated, m) {
  m.def("configure(int level, bool half_accumulate, int multiprocessors, int shared_limit, int seed, "
        "int seconds=60) -> ()");
  m.def("fence(bool on) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(vitsparse_emulated, CompositeExplicitAutograd, m) {
  m.impl("configure", TORCH_BOX(&vitsparse::binding::configure));
  m.impl("fence", TORCH_BOX(&emulator::fence));
}
