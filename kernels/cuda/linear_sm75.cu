// linear at level sm75, and float32 at every level.
#include "kernels/cuda/linear_launch.cuh"

namespace vitsparse::cuda {

cudaError_t linear_sm75(const LinearParams& params, LinearTile tile, const Context& context) {
  if (context.dtype == Dtype::float32) return launch_linear<Level::sm75, float, false>(params, tile, context);
  if (context.half_accumulate) return launch_linear<Level::sm75, __half, true>(params, tile, context);
  return launch_linear<Level::sm75, __half, false>(params, tile, context);
}

}  // namespace vitsparse::cuda
