// How kernels are launched: one parameter, by value.
#pragma once
#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

struct Grid {
  int blocks, threads, shared_bytes;
  bool cooperative = false;  // all blocks run at the same time, so that they can wait for each other
};

template <class Params>
cudaError_t launch(void (*kernel)(Params), const Params& params, const Grid& grid, const Context& context) {
  if (grid.blocks == 0) return cudaSuccess;  // a grid of no blocks is an error
  if (grid.shared_bytes > 48 * 1024) {       // more than any device gives unasked
    // Not what this launch needs: another thread may be between asking for its own and launching.
    const auto set = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, context.shared_limit);
    if (set != cudaSuccess) return set;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.blocks);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = context.stream;
  config.attrs = &attribute;
  config.numAttrs = grid.cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace vitsparse::cuda
