// Senders and their sum, as the bindings of sum_norm and mlp share them.
#pragma once
#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "csrc/cuda/tensors.h"
#include "kernels/cuda/sum_norm.h"

namespace vitsparse::binding {

// The senders [B, T, D] and the offset [T, D] or none, checked and with dense rows.
struct Senders {
  std::vector<Tensor> tensors;
  std::optional<Tensor> offset;
  int64_t images, rows, width;

  Senders(const std::vector<Tensor>& senders, const std::optional<Tensor>& constant) {
    STD_TORCH_CHECK(!senders.empty(), "senders: expected at least one");
    const Tensor& first = senders.front();
    for (const Tensor& sender : senders) tensors.push_back(with_dense_rows(sender, first, "senders", 3));
    images = first.size(0), rows = first.size(1), width = first.size(2);
    for (const Tensor& sender : tensors)
      STD_TORCH_CHECK(sender.size(0) == images && sender.size(1) == rows && sender.size(2) == width,
                      "senders: expected one shape");
    STD_TORCH_CHECK(std::max(images * rows, width) < std::numeric_limits<int>::max() / 2, "senders: too large");
    if (constant) offset = with_dense_rows(*constant, first, "offset", 2);
    STD_TORCH_CHECK(!offset || (offset->size(0) == rows && offset->size(1) == width), "offset: expected [", rows, ", ",
                    width, "]");
  }

  Tensor empty(int64_t columns) const { return torch::stable::new_empty(tensors.front(), {images, rows, columns}); }

  // Everything but the senders and the results.
  cuda::SumNormParams params(double eps) const {
    cuda::SumNormParams params{};
    params.offset = data_or_null(offset);
    params.offset_stride = offset ? offset->stride(0) : 0;
    params.batch = static_cast<int>(images);
    params.rows = static_cast<int>(rows);
    params.width = static_cast<int>(width);
    params.eps = static_cast<float>(eps);
    return params;
  }

  // Sets the senders of `params`; where they are too many for one launch, the first ones are added up into `sum` before.
  void set(cuda::SumNormParams& params, const Tensor& sum, const cuda::Context& context) const {
    size_t next = 0;
    const auto take = [&](cuda::SumNormParams& to) {
      while (to.count < cuda::max_sources && next < tensors.size()) to.sources[to.count++] = view_of(tensors[next++]);
    };
    while (tensors.size() - next > static_cast<size_t>(cuda::max_sources - (next > 0))) {
      cuda::SumNormParams part = params;
      if (next > 0) {
        part.sources[part.count++] = view_of(sum);
        part.offset = nullptr;
      }
      part.sum = view_of(sum);
      part.normed = {};
      take(part);
      check(cuda::sum_norm(part, context), "sum_norm");
    }
    if (next > 0) {
      params.sources[params.count++] = view_of(sum);
      params.offset = nullptr;
    }
    take(params);
  }
};

}  // namespace vitsparse::binding
