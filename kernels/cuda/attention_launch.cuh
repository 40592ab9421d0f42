// The launch of attention's kernel: included by the files that instantiate a level.
#pragma once
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"

namespace vitsparse::cuda {

template <Level level, class T>
cudaError_t launch_attention(const AttentionParams& params, int threads, const Context& context) {
  const Grid grid{attention_tasks<T>(params, threads), threads, attention_shared<T>(params, threads)};
  switch (padded_head(params.head_dim)) {
    case 32: return launch(attention_kernel<level, T, 32>, params, grid, context);
    case 64: return launch(attention_kernel<level, T, 64>, params, grid, context);
    default: return launch(attention_kernel<level, T, 128>, params, grid, context);
  }
}

}  // namespace vitsparse::cuda
