// Stands for kernels/cuda/launch.cuh: a launch returns when its last thread has ended.
#pragma once
#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

struct Grid {
  int blocks, threads, shared_bytes;
  bool cooperative = false;
};

template <class Params>
cudaError_t launch(void (*kernel)(Params), const Params& params, const Grid& grid, const Context& context) {
  static_assert(sizeof(Params) <= 4096, "more than a launch takes");
  if (grid.blocks == 0) return cudaSuccess;
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  } call{kernel, params};
  const auto body = [](void* argument) {
    const Call& call = *static_cast<Call*>(argument);
    call.kernel(call.params);
  };
  const emulator::Launch launch{body, &call, grid.blocks, grid.threads, grid.shared_bytes, grid.cooperative};
  if (emulator::recording) {
    emulator::note(reinterpret_cast<const void*>(kernel), launch);
    return cudaSuccess;
  }
  const auto& device = *reinterpret_cast<const emulator::Device*>(context.stream);
  return emulator::run(launch, device) ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace vitsparse::cuda
