// From stable-ABI tensors to the memory views of kernels/cpu, with the checks that memory safety needs. The contracts
// (vitsparse/ops) check first and explain better.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/cost.h"
#include "kernels/cpu/layout.h"

namespace vitsparse::binding {

using torch::stable::Tensor;

inline void check_floats(const Tensor& x, const char* what) {
  STD_TORCH_CHECK(x.scalar_type() == torch::headeronly::ScalarType::Float && x.is_cpu(), what,
                  ": the cpu backend takes float32 tensors in CPU memory");
}

// The tensor itself, or a copy where its numbers straddle addresses: views of bytes from a file or a message may.
inline Tensor aligned(const Tensor& x, size_t to = alignof(float)) {
  const bool straddles = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % to != 0;
  return straddles ? torch::stable::contiguous(torch::stable::clone(x)) : x;
}

// The tensor itself when its last dimension lies densely in memory, else a contiguous copy.
inline Tensor with_dense_rows(const Tensor& x, const char* what, int64_t dims) {
  check_floats(x, what);
  STD_TORCH_CHECK(x.dim() == dims, what, ": expected ", dims, " dimensions, found ", x.dim());
  return x.stride(dims - 1) == 1 || x.size(dims - 1) == 1 ? aligned(x) : torch::stable::contiguous(x);
}

inline Tensor contiguous_floats(const Tensor& x, const char* what) {
  check_floats(x, what);
  return aligned(torch::stable::contiguous(x));
}

// [B or 1, T, D] as rows; a batch of 1 stands for the same rows in each image.
inline cpu::Rows rows_of(const Tensor& x) {
  return {static_cast<const float*>(x.const_data_ptr()), x.size(0) == 1 ? 0 : x.stride(0), x.stride(1)};
}

inline const float* data_of(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }
inline float* mutable_data_of(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

// A new contiguous [B, T, D] tensor like `like`, and its rows.
inline Tensor new_rows(const Tensor& like, int64_t images, int64_t rows, int64_t width) {
  return torch::stable::new_empty(like, {images, rows, width});
}
inline cpu::MutableRows mutable_rows_of(const Tensor& x) {
  return {mutable_data_of(x), x.size(1) * x.size(2), x.size(2)};
}

// Runs all tasks of `op`, on several threads where each gets work worth a thread.
template <class Operation>
void run_tasks(const Operation& op, void (*kernel)(const Operation&, int64_t, int64_t)) {
  const int64_t tasks = cpu::tasks(op);  // at least 1: empty results return before
  const double each = std::max(1., cpu::flops(op) / static_cast<double>(tasks));
  const auto grain = static_cast<int64_t>(cpu::worth_a_thread / 2 / each) + 1;
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { kernel(op, begin, end); });
}

}  // namespace vitsparse::binding
