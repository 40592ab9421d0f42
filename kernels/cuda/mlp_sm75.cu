// The fused MLP at level sm75, and in float32 at every level.
#include "kernels/cuda/mlp_launch.cuh"

namespace vitsparse::cuda {

cudaError_t mlp_sm75(const MlpParams& params, MlpTile tile, const Context& context) {
  if (context.dtype == Dtype::float32) return launch_mlp<Level::sm75, float, false>(params, tile, context);
  if (context.half_accumulate) return launch_mlp<Level::sm75, __half, true>(params, tile, context);
  return launch_mlp<Level::sm75, __half, false>(params, tile, context);
}

}  // namespace vitsparse::cuda
