// qkv_attention at level sm80, which sm90 runs too.
#include "kernels/cuda/qkv_attention_launch.cuh"

namespace vitsparse::cuda {

cudaError_t qkv_attention_sm80(const QkvAttentionParams& params, const Context& context) {
  if (context.dtype == Dtype::bfloat16) return launch_qkv_attention<Level::sm80, __nv_bfloat16>(params, context);
  return launch_qkv_attention<Level::sm80, __half>(params, context);
}

}  // namespace vitsparse::cuda
