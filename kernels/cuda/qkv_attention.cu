// qkv_attention: whether a block can do it, and which level's code.
#include "kernels/cuda/qkv_attention.h"

#include "kernels/cuda/qkv_attention.cuh"

namespace vitsparse::cuda {

cudaError_t qkv_attention_sm75(const QkvAttentionParams& params, const Context& context);
cudaError_t qkv_attention_sm80(const QkvAttentionParams& params, const Context& context);

bool qkv_attention_fits(const QkvAttentionParams& params, const Context& context) {
  const int threads = qkv_attention_threads(params);
  if (context.dtype == Dtype::float32) return qkv_attention_holds<Level::sm75, float>(params, threads, context.shared_limit);
  return context.level == Level::sm75
             ? qkv_attention_holds<Level::sm75, __half>(params, threads, context.shared_limit)
             : qkv_attention_holds<Level::sm80, __half>(params, threads, context.shared_limit);
}

cudaError_t qkv_attention(const QkvAttentionParams& params, const Context& context) {
  if (!qkv_attention_fits(params, context)) return cudaErrorInvalidValue;
  const bool old = context.level == Level::sm75 || context.dtype == Dtype::float32;
  return (old ? qkv_attention_sm75 : qkv_attention_sm80)(params, context);
}

}  // namespace vitsparse::cuda
