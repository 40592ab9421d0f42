// The launch of qkv_attention's kernel: included by the files that instantiate a level.
#pragma once
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/qkv_attention.cuh"

namespace vitsparse::cuda {

template <Level level, class T>
cudaError_t launch_qkv_attention(const QkvAttentionParams& params, const Context& context) {
  const int threads = qkv_attention_threads(params);
  const Grid grid{qkv_attention_tasks(params), threads, qkv_attention_shared<level, T>(params, threads)};
  const QkvAttentionLaunch what{params, context.half_accumulate};
  if (params.head_dim > 32) return launch(qkv_attention_kernel<level, T, 64, 1>, what, grid, context);
  if constexpr (!std::is_same_v<T, float>) {
    if (qkv_depth(params, threads) == 2) return launch(qkv_attention_kernel<level, T, 32, 2>, what, grid, context);
  }
  return launch(qkv_attention_kernel<level, T, 32, 1>, what, grid, context);
}

}  // namespace vitsparse::cuda
