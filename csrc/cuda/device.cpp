// The facts of a device, asked once, and the settings of the process: code level and accumulation (cuda_level.py).
#include "csrc/cuda/device.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

namespace vitsparse::binding {
namespace {

using torch::headeronly::ScalarType;

struct Facts {
  int level, multiprocessors, shared_limit;
};

std::atomic<int> wanted_level{0};  // 0: the highest the device has
std::atomic<bool> half_accumulate{false};

constexpr int max_devices = 64;

const Facts& facts_of(int device) {
  static std::array<Facts, max_devices> facts;
  static std::array<std::once_flag, max_devices> asked;
  STD_TORCH_CHECK(device >= 0 && device < max_devices, "vitsparse: device ", device, " is out of range");
  std::call_once(asked[device], [device] {
    int major = 0, minor = 0;
    Facts found{};
    const auto ask = [device](int* value, cudaDeviceAttr what) {
      const auto status = cudaDeviceGetAttribute(value, what, device);
      STD_TORCH_CHECK(status == cudaSuccess, "vitsparse: asking the device: ", cudaGetErrorString(status));
    };
    ask(&major, cudaDevAttrComputeCapabilityMajor);
    ask(&minor, cudaDevAttrComputeCapabilityMinor);
    ask(&found.multiprocessors, cudaDevAttrMultiProcessorCount);
    ask(&found.shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    const int capability = 10 * major + minor;
    STD_TORCH_CHECK(capability >= 75, "vitsparse: the device has compute capability ", major, ".", minor,
                    ", and 7.5 is the least supported");
    found.level = capability == 90 ? 90 : capability >= 80 ? 80 : 75;
    facts[device] = found;
  });
  return facts[device];
}

cuda::Dtype dtype_of(const Tensor& x, int level) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return cuda::Dtype::float32;
    case ScalarType::Half: return cuda::Dtype::float16;
    case ScalarType::BFloat16:
      STD_TORCH_CHECK(level >= 80, "vitsparse: bfloat16 needs compute capability 8.0; use float16 here");
      return cuda::Dtype::bfloat16;
    default: STD_TORCH_CHECK(false, "vitsparse: the cuda backend takes float16, bfloat16 or float32");
  }
}

// Level in use: 75, 80, 90; sets it where `wanted` is one of these, and gives the choice back to the device for 0.
int64_t cuda_level(int64_t wanted) {
  if (wanted >= 0) {
    STD_TORCH_CHECK(wanted == 0 || wanted == 75 || wanted == 80 || wanted == 90, "vitsparse: no level ", wanted);
    wanted_level = static_cast<int>(wanted);
  }
  return wanted_level;
}

bool cuda_half_accumulate(bool wanted) { return half_accumulate.exchange(wanted); }

}  // namespace

cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

cuda::Context context_of(const Tensor& x) {
  const int device = x.get_device_index();
  const Facts& facts = facts_of(device);
  const int wanted = wanted_level;
  STD_TORCH_CHECK(wanted <= facts.level, "vitsparse: level ", wanted, " was asked for, and the device has ", facts.level);
  const int level = wanted == 0 ? facts.level : wanted;
  const int shared = level == 75 ? std::min(facts.shared_limit, 64 * 1024) : facts.shared_limit;
  return {stream_of(x), static_cast<cuda::Level>(level), dtype_of(x, level), half_accumulate,
          facts.multiprocessors, shared};
}

}  // namespace vitsparse::binding

STABLE_TORCH_LIBRARY_IMPL(vitsparse, CompositeExplicitAutograd, m) {
  m.impl("cuda_level", TORCH_BOX(&vitsparse::binding::cuda_level));
  m.impl("cuda_half_accumulate", TORCH_BOX(&vitsparse::binding::cuda_half_accumulate));
}
