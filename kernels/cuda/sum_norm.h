// sum = offset + sources (less those that are taken away) and normed = (sum - mean) / sqrt(variance + eps), row by row: the
// residual stream that a reader sees.
#pragma once
#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

constexpr int max_sources = 48;  // of one launch; a longer list takes several, the sum so far being the first source

struct SumNormParams {
  View sources[max_sources];  // [batch, rows, width]
  int count, minuses;         // the first `count` are added, the next `minuses` taken away
  const void* offset;         // [rows][width], or null
  int64_t offset_stride;      // 0: one row for all
  View sum, normed;           // data null: not wanted
  int batch, rows, width;
  float eps;
};

cudaError_t sum_norm(const SumNormParams& params, const Context& context);

}  // namespace vitsparse::cuda
