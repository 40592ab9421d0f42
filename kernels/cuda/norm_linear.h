// dst = activation(norm(sum) W^T + bias) with sum = offset + sources: a product that makes what it reads. For few rows and
// few sources, where a launch or a barrier less counts for more than that each block of a tile of rows adds them up again.
#pragma once
#include "kernels/cuda/linear.h"

namespace vitsparse::cuda {

constexpr int max_gathered = 8;

struct NormLinearParams {
  LinearParams product;          // src: not used; nothing is accumulated
  int count, minuses;            // the first `count` are added, the next `minuses` taken away
  const void* offset;            // [rows][inputs], or null
  int64_t offset_stride;         // 0: one row for all
  View sum;                      // data null: not wanted; none of the sources
  float eps;
  View sources[max_gathered];    // [batch, rows, inputs]
};

// Whether a tile fits in shared memory; if not, take sum_norm() and linear().
bool norm_linear_fits(const NormLinearParams& params, const Context& context);
cudaError_t norm_linear(const NormLinearParams& params, const Context& context);

}  // namespace vitsparse::cuda
