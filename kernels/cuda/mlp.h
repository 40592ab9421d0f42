// dst = gelu(norm(sum) W1^T + b1) W2^T + b2 with sum = offset + sources: gather, norm and both products of a tile of rows
// in one block, the hidden units a chunk at a time, so that neither the normed rows nor the hidden units go to memory.
#pragma once
#include "kernels/cuda/sum_norm.h"

namespace vitsparse::cuda {

struct MlpParams {
  SumNormParams input;  // normed.data is null
  View dst;             // [batch, rows, outputs]
  const void *weight1, *bias1;  // [hidden][weight1_stride] and [hidden]
  const void *weight2, *bias2;  // [outputs][weight2_stride] and [outputs], or null
  int64_t weight1_stride, weight2_stride;
  int hidden, outputs;
};

// Whether a tile fits in shared memory and registers; if not, take sum_norm() and linear() twice.
bool mlp_fits(const MlpParams& params, const Context& context);
cudaError_t mlp(const MlpParams& params, const Context& context);

}  // namespace vitsparse::cuda
