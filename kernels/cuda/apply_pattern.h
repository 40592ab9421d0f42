// dst = pattern v for each image and head, heads side by side in the columns: attention whose weights are known.
#pragma once
#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

struct ApplyPatternParams {
  const void* pattern;  // [heads][queries][keys], the same for each image
  View v;               // [batch, keys, heads * head_dim]
  View dst;             // [batch, queries, heads * head_dim]
  int batch, heads, head_dim, queries, keys;
};

cudaError_t apply_pattern(const ApplyPatternParams& params, const Context& context);

}  // namespace vitsparse::cuda
