// norm_linear at level sm75, and float32 at every level.
#include "kernels/cuda/norm_linear_launch.cuh"

namespace vitsparse::cuda {

cudaError_t norm_linear_sm75(const NormLinearParams& params, const Context& context) {
  if (context.dtype == Dtype::float32) return launch_norm_linear<Level::sm75, float>(params, context);
  return launch_norm_linear<Level::sm75, __half>(params, context);
}

}  // namespace vitsparse::cuda
