// The launch of linear's kernel: included by the files that instantiate a level.
#pragma once
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear.cuh"

namespace vitsparse::cuda {

template <Level level, class T, bool half_sums>
cudaError_t launch_linear(const LinearParams& params, LinearTile tile, const Context& context) {
  const Grid grid{linear_tasks(params, tile), 256, linear_shared<level, T>(params, tile)};
  switch (tile) {
    case LinearTile::large: return launch(linear_kernel<level, T, half_sums, LargeLinear>, params, grid, context);
    case LinearTile::medium: return launch(linear_kernel<level, T, half_sums, MediumLinear>, params, grid, context);
    default: return launch(linear_kernel<level, T, false, SmallLinear>, params, grid, context);  // latency rules
  }
}

}  // namespace vitsparse::cuda
