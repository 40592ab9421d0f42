// A warp takes a row; there is nothing to share. With few rows a block is one warp, so that they reach more
// multiprocessors. No tensor cores: one code for all levels.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sum_norm.cuh"

namespace vitsparse::cuda {
namespace {

constexpr int most_threads = 128;

template <class T>
__global__ void __launch_bounds__(most_threads) sum_norm_kernel(SumNormParams params) {
  const int index = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);  // threads are not counted: 2^32
  if (index < params.batch * params.rows) sum_norm_task<T>(params, index);
}

template <class T>
cudaError_t run(const SumNormParams& params, const Context& context) {
  const int rows = params.batch * params.rows;
  const int warps = rows < 4 * context.multiprocessors ? 1 : most_threads / 32;
  return launch(sum_norm_kernel<T>, params, {(rows + warps - 1) / warps, 32 * warps, 0}, context);
}

}  // namespace

cudaError_t sum_norm(const SumNormParams& params, const Context& context) {
  switch (context.dtype) {
    case Dtype::float16: return run<__half>(params, context);
    case Dtype::bfloat16: return run<__nv_bfloat16>(params, context);
    default: return run<float>(params, context);
  }
}

}  // namespace vitsparse::cuda
