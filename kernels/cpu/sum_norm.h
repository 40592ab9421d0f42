// Residual stream of a reader and its normalisation without affine part:
//   r = offset + sum of sources;  sum = r;  normed = (r - mean(r)) / sqrt(var(r) + eps), per row, biased variance.
#pragma once
#include "kernels/cpu/layout.h"

namespace vitsparse::cpu {

struct SumNorm {
  const Rows* sources;  // `count` of [images, rows, width]
  int64_t count;
  const float* offset;  // [rows, width], or null
  MutableRows sum;      // data null: not wanted. It may be one of the sources.
  MutableRows normed;   // data null: not wanted
  int64_t images, rows, width;
  float eps;
};

// A task is one row: task = image * rows + row.
inline int64_t sum_norm_tasks(const SumNorm& op) { return op.images * op.rows; }
void sum_norm(const SumNorm& op, int64_t begin, int64_t end);
inline void sum_norm(const SumNorm& op) { sum_norm(op, 0, sum_norm_tasks(op)); }

}  // namespace vitsparse::cpu
