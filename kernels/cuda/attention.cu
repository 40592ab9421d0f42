// attention: how large the blocks are, and which level's code.
#include "kernels/cuda/attention.h"

#include "kernels/cuda/attention.cuh"

namespace vitsparse::cuda {

cudaError_t attention_sm75(const AttentionParams& params, int threads, const Context& context);
cudaError_t attention_sm80(const AttentionParams& params, int threads, const Context& context);

int attention_threads(const AttentionParams& params, const Context& context) {
  const int most = context.dtype == Dtype::float32 ? attention_warps<float>(params.head_dim, 256)
                                                    : attention_warps<__half>(params.head_dim, 256);
  const int tiles = ceil_div(params.queries, 16), groups = ceil_div(tiles, most);
  const int warps = ceil_div(tiles, groups);  // the rows of a head in equal parts
  const bool few = params.batch * params.heads * groups < context.multiprocessors;
  return 32 * (few && warps > 4 ? 4 : warps < 2 ? 2 : warps);  // a warp for each scheduler, on twice as many blocks
}

cudaError_t attention(const AttentionParams& params, const Context& context) {
  if (params.head_dim > max_head_dim) return cudaErrorInvalidValue;
  const bool old = context.level == Level::sm75 || context.dtype == Dtype::float32;
  return (old ? attention_sm75 : attention_sm80)(params, attention_threads(params, context), context);
}

}  // namespace vitsparse::cuda
