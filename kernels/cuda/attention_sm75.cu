// attention at level sm75, and float32 at every level.
#include "kernels/cuda/attention_launch.cuh"

namespace vitsparse::cuda {

cudaError_t attention_sm75(const AttentionParams& params, int threads, const Context& context) {
  if (context.dtype == Dtype::float32) return launch_attention<Level::sm75, float>(params, threads, context);
  return launch_attention<Level::sm75, __half>(params, threads, context);
}

}  // namespace vitsparse::cuda
