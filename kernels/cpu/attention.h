// Softmax attention of each image and head: dst = softmax(scale q k^T) v.
#pragma once
#include "kernels/cpu/layout.h"

namespace vitsparse::cpu {

struct Attention {
  Rows q, k, v;      // [images, queries | keys | keys, heads * head_dim]; head h has columns h * head_dim on
  MutableRows dst;   // [images, queries, heads * head_dim]
  int64_t images, queries, keys, heads, head_dim;
  float scale;
  const bool* head_keep = nullptr;  // null, or [images, heads]: a head that an image does not keep gives zeros, unread
};

// A task is one head of one image: task = image * heads + head.
inline int64_t attention_tasks(const Attention& op) { return op.images * op.heads; }
void attention(const Attention& op, int64_t begin, int64_t end);
inline void attention(const Attention& op) { attention(op, 0, attention_tasks(op)); }

}  // namespace vitsparse::cpu
