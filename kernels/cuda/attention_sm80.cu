// attention at level sm80, which is all that sm90 needs: at these lengths the products are too small for wgmma.
#include "kernels/cuda/attention_launch.cuh"

namespace vitsparse::cuda {

cudaError_t attention_sm80(const AttentionParams& params, int threads, const Context& context) {
  if (context.dtype == Dtype::bfloat16) return launch_attention<Level::sm80, __nv_bfloat16>(params, threads, context);
  return launch_attention<Level::sm80, __half>(params, threads, context);
}

}  // namespace vitsparse::cuda
