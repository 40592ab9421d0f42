// A constant attention pattern applied to values: dst = pattern v for each image and head.
#pragma once
#include "kernels/cpu/layout.h"

namespace vitsparse::cpu {

struct ApplyPattern {
  const float* pattern;  // [heads, queries, keys], the same for each image
  Rows v;                // [images, keys, heads * head_dim]
  MutableRows dst;       // [images, queries, heads * head_dim]
  int64_t images, queries, keys, heads, head_dim;
};

// A task is one head of one image: task = image * heads + head.
inline int64_t apply_pattern_tasks(const ApplyPattern& op) { return op.images * op.heads; }
void apply_pattern(const ApplyPattern& op, int64_t begin, int64_t end);
inline void apply_pattern(const ApplyPattern& op) { apply_pattern(op, 0, apply_pattern_tasks(op)); }

}  // namespace vitsparse::cpu
