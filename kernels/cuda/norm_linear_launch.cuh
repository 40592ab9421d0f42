// The launch of norm_linear's kernel: included by the files that instantiate a level.
#pragma once
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/norm_linear.cuh"

namespace vitsparse::cuda {

template <Level level, class T>
cudaError_t launch_norm_linear(const NormLinearParams& params, const Context& context) {
  const Grid grid{norm_linear_tasks(params), 256, norm_linear_shared<level, T>(params)};
  return launch(norm_linear_kernel<level, T>, params, grid, context);
}

}  // namespace vitsparse::cuda
