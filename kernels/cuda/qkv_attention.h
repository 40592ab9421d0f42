// dst = attention of q, k, v = src W^T + bias, for each image and head: a block of threads per (image, head), nothing
// but z = dst goes back to memory.
#pragma once
#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

struct QkvAttentionParams {
  View src, dst;             // [batch, tokens, inputs] and [batch, tokens, heads * head_dim]
  const void* weight;        // [3 * heads * head_dim][weight_stride]: q of all heads, then k, then v
  int64_t weight_stride;
  const void* bias;          // [3 * heads * head_dim], or null
  const uint8_t* head_keep;  // as in attention.h
  int batch, heads, head_dim, tokens, inputs;
  float scale;
};

// Whether one block's tiles fit in shared memory; if not, take linear() and attention().
bool qkv_attention_fits(const QkvAttentionParams& params, const Context& context);
cudaError_t qkv_attention(const QkvAttentionParams& params, const Context& context);

}  // namespace vitsparse::cuda
