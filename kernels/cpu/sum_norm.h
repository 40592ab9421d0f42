// Residual streams of readers and their normalisation without affine part. For each part:
//   r = offset + sum of adds - sum of minuses;  sum = r;  normed = (r - mean(r)) / sqrt(var(r) + eps)
// per row, with the biased variance. All parts of a row are made together, so that each source is fetched once.
#pragma once
#include "kernels/cpu/layout.h"

namespace vitsparse::cpu {

// Index i < SumNorm::count is source i; i >= count is the sum of part i - count, an earlier one that stores its sum.
struct SumPart {
  const int64_t* adds;
  int64_t add_count;
  const int64_t* minuses;
  int64_t minus_count;
  const float* offset;  // null, or row r gets offset + r * offset_stride
  int64_t offset_stride;
  MutableRows sum;      // data null: not wanted. It may be a source, but none that a later part reads.
  MutableRows normed;   // data null: not wanted; at least one of the two is
};

struct SumNorm {
  const Rows* sources;  // `count` of [images, rows, width]
  int64_t count;
  const SumPart* parts;
  int64_t part_count;
  int64_t images, rows, width;
  float eps;
};

// A task is one row of all parts: task = image * rows + row.
inline int64_t sum_norm_tasks(const SumNorm& op) { return op.images * op.rows; }
void sum_norm(const SumNorm& op, int64_t begin, int64_t end);
inline void sum_norm(const SumNorm& op) { sum_norm(op, 0, sum_norm_tasks(op)); }

}  // namespace vitsparse::cpu
