// The fused MLP at level sm80.
#include "kernels/cuda/mlp_launch.cuh"

namespace vitsparse::cuda {

cudaError_t mlp_sm80(const MlpParams& params, MlpTile tile, const Context& context) {
  if (context.dtype == Dtype::bfloat16) return launch_mlp<Level::sm80, __nv_bfloat16, false>(params, tile, context);
  if (context.half_accumulate) return launch_mlp<Level::sm80, __half, true>(params, tile, context);
  return launch_mlp<Level::sm80, __half, false>(params, tile, context);
}

}  // namespace vitsparse::cuda
