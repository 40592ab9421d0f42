// qkv_attention at level sm75, and float32 at every level.
#include "kernels/cuda/qkv_attention_launch.cuh"

namespace vitsparse::cuda {

cudaError_t qkv_attention_sm75(const QkvAttentionParams& params, const Context& context) {
  if (context.dtype == Dtype::float32) return launch_qkv_attention<Level::sm75, float>(params, context);
  return launch_qkv_attention<Level::sm75, __half>(params, context);
}

}  // namespace vitsparse::cuda
