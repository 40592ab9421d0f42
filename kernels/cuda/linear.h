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

cudaError_t linear(const LinearParams& params, const Context& context);

}  // namespace vitsparse::cuda
