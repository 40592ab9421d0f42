// dst = softmax(scale q k^T) v for each image and head, heads side by side in the columns.
#pragma once
#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

constexpr int max_head_dim = 128;  // of all kernels here: a row of a head lies in the registers of four lanes

struct AttentionParams {
  View q, dst;               // [batch, queries, heads * head_dim]
  View k, v;                 // [batch, keys, heads * head_dim]
  const uint8_t* head_keep;  // [batch][heads]; null: all; a head not kept gives zeros
  int batch, heads, head_dim, queries, keys;
  float scale;
};

// Any number of queries and keys.
cudaError_t attention(const AttentionParams& params, const Context& context);

}  // namespace vitsparse::cuda
