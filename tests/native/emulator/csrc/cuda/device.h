// Stands for csrc/cuda/device.h: CPU tensors, the emulated device, and a namespace of its own for the ops.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "kernels/cuda/level.h"

namespace vitsparse::binding {

using torch::stable::Tensor;

struct Guard {
  explicit Guard(int) {}
};

inline bool on_device(const Tensor& x) { return x.is_cpu(); }

cudaStream_t stream_of(const Tensor& x);
cuda::Context context_of(const Tensor& x);

}  // namespace vitsparse::binding

#define VITSPARSE_REGISTER_CUDA(m) STABLE_TORCH_LIBRARY_IMPL(vitsparse_emulated, CPU, m)
