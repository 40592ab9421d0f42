// What the bindings of attention and qkv_attention share.
#pragma once
#include <limits>
#include <optional>

#include "csrc/cuda/tensors.h"

namespace vitsparse::binding {

// head_keep with its numbers side by side.
inline std::optional<Tensor> checked_keep(const std::optional<Tensor>& head_keep, const Tensor& like, int64_t images,
                                          int64_t heads) {
  if (!head_keep) return std::nullopt;
  const bool fits = on_device(*head_keep) && head_keep->get_device_index() == like.get_device_index() &&
                    head_keep->scalar_type() == torch::headeronly::ScalarType::Bool && head_keep->dim() == 2 &&
                    head_keep->size(0) == images && head_keep->size(1) == heads;
  STD_TORCH_CHECK(fits, "head_keep: expected bool [", images, ", ", heads, "] on the same GPU");
  return torch::stable::contiguous(*head_keep);
}

inline const uint8_t* bytes_of(const std::optional<Tensor>& keep) {
  return static_cast<const uint8_t*>(data_or_null(keep));
}

// Sizes of a launch are 32-bit, and so are their products within one task.
inline int size_of(int64_t size, const char* what) {
  STD_TORCH_CHECK(size >= 0 && size <= std::numeric_limits<int>::max() / 512, what, ": too many (", size, ")");
  return static_cast<int>(size);
}

}  // namespace vitsparse::binding
