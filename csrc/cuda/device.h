// What the bindings of csrc/cuda need of a device: its facts, the stream of the caller, and where ops are registered.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "kernels/cuda/level.h"

namespace vitsparse::binding {

using torch::stable::Tensor;

// Guards the current device while a binding runs.
using Guard = torch::stable::accelerator::DeviceGuard;

inline bool on_device(const Tensor& x) { return x.is_cuda(); }

// The caller's stream on the device of `x`.
cudaStream_t stream_of(const Tensor& x);

// The context of a launch on the device and current stream of `x`, for its dtype, at the level and accumulation in use
// (cuda_level). Throws for a dtype that the level lacks, saying which.
cuda::Context context_of(const Tensor& x);

}  // namespace vitsparse::binding

// Opens a block that registers kernels: VITSPARSE_REGISTER_CUDA(m) { m.impl("noop", TORCH_BOX(&noop)); }
#define VITSPARSE_REGISTER_CUDA(m) STABLE_TORCH_LIBRARY_IMPL(vitsparse, CUDA, m)
