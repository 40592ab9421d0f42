// The living template of a CUDA kernel's header: plain C++, so that the binding needs no nvcc.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/common/noop.h"

namespace vitsparse::cuda {

// Queues the copy on `stream` of the current device and returns without waiting. Instances: float, double, __half.
template <typename T>
cudaError_t launch_noop(const NoopParams<T>& params, cudaStream_t stream);

}  // namespace vitsparse::cuda
