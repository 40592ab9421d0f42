// Identity copy, the living template of a CUDA kernel: params struct in, kernel in an anonymous namespace, one launcher.
// Shapes: in, out [count], contiguous. Grid: as many blocks as fill the device, striding over the elements.
#include "kernels/cuda/noop.h"

#include <algorithm>

#include "kernels/cuda/launch.cuh"

namespace vitsparse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 1024;  // beyond this the stride loop is as fast and launches less

template <typename T>
__global__ void __launch_bounds__(kThreads) noop_kernel(NoopParams<T> params) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < params.count; i += stride) {
    params.out[i] = params.in[i];
  }
}

}  // namespace

template <typename T>
cudaError_t launch_noop(const NoopParams<T>& params, cudaStream_t stream) {
  const int64_t blocks = std::min<int64_t>(kMaxBlocks, (params.count + kThreads - 1) / kThreads);
  Context context{};
  context.stream = stream;
  return launch(noop_kernel<T>, params, {static_cast<int>(blocks), kThreads, 0}, context);
}

template cudaError_t launch_noop<float>(const NoopParams<float>&, cudaStream_t);
template cudaError_t launch_noop<double>(const NoopParams<double>&, cudaStream_t);
template cudaError_t launch_noop<__half>(const NoopParams<__half>&, cudaStream_t);

}  // namespace vitsparse::cuda
