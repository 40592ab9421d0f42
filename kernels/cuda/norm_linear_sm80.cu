// norm_linear at level sm80.
#include "kernels/cuda/norm_linear_launch.cuh"

namespace vitsparse::cuda {

cudaError_t norm_linear_sm80(const NormLinearParams& params, const Context& context) {
  if (context.dtype == Dtype::bfloat16) return launch_norm_linear<Level::sm80, __nv_bfloat16>(params, context);
  return launch_norm_linear<Level::sm80, __half>(params, context);
}

}  // namespace vitsparse::cuda
