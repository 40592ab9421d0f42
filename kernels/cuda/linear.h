// dst = activation(src W^T + bias) (+ dst), for the rows of every image.
#pragma once
#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

struct LinearParams {
  View src, dst;          // [batch, rows, inputs] and [batch, rows, outputs]
  const void* weight;     // [outputs][weight_stride], weight_stride >= inputs
  int64_t weight_stride;
  const void* bias;       // null: none
  int64_t bias_stride;    // 0: one bias for all rows, else one for each row of an image
  int batch, rows, inputs, outputs;
  bool gelu, accumulate;
};

// What one block computes of dst: 128 x 128, 64 x 64, or 16 x 32 with its eight warps sharing the inputs.
enum class LinearTile : int { large, medium, small };

// The tile that is done first, by a rough model of waves of blocks.
LinearTile linear_tile(const LinearParams& params, const Context& context);

cudaError_t linear(const LinearParams& params, const Context& context);

}  // namespace vitsparse::cuda
