// The launch of the fused MLP: included by the files that instantiate a level.
#pragma once
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mlp.cuh"

namespace vitsparse::cuda {

template <Level level, class T, bool half_sums, class Shape>
__global__ void __launch_bounds__(256, 1) mlp_kernel(MlpParams params) {
  mlp_task<level, T, half_sums, Shape>(params, [&](int i) { return params.input.sources[i]; }, blockIdx.x);
}

template <Level level, class T, bool half_sums>
cudaError_t launch_mlp(const MlpParams& params, MlpTile tile, const Context& context) {
  const Grid grid{mlp_tasks(params, tile), 256, mlp_shared<level, T>(params, tile)};
  if constexpr (sizeof(T) == 2) {
    if (tile == MlpTile::large) return launch(mlp_kernel<level, T, half_sums, LargeMlp>, params, grid, context);
    if (tile == MlpTile::medium) return launch(mlp_kernel<level, T, half_sums, MediumMlp>, params, grid, context);
  }
  return launch(mlp_kernel<level, T, false, SmallMlp>, params, grid, context);  // for float32, and where latency rules
}

}  // namespace vitsparse::cuda
