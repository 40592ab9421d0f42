// From stable-ABI tensors to the views of kernels/cuda, with the checks that memory safety needs. The contracts
// (vitsparse/ops) check first and explain better.
#pragma once
#include "csrc/cuda/device.h"

namespace vitsparse::binding {

// The tensor itself when its last dimension lies densely in memory, else a contiguous copy.
inline Tensor with_dense_rows(const Tensor& x, const Tensor& like, const char* what, int64_t dims) {
  STD_TORCH_CHECK(on_device(x) && x.get_device_index() == like.get_device_index(), what, ": expected on the same GPU");
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type(), what, ": expected the dtype of the other tensors");
  STD_TORCH_CHECK(x.dim() == dims, what, ": expected ", dims, " dimensions, found ", x.dim());
  return x.stride(dims - 1) == 1 || x.size(dims - 1) == 1 ? x : torch::stable::contiguous(x);
}

// [B or 1, T, D] as a view; a batch of 1 stands for the same rows in each image.
inline cuda::View view_of(const Tensor& x) {
  return {x.mutable_data_ptr(), x.size(0) == 1 ? 0 : x.stride(0), x.stride(1)};
}

// The numbers of an optional tensor, or null.
template <class Optional>
const void* data_or_null(const Optional& x) { return x.has_value() ? x->const_data_ptr() : nullptr; }

inline void check(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

}  // namespace vitsparse::binding
