// dst = gelu(norm(sum) W1^T + b1) W2^T + b2 with sum = offset + sources: gather, norm and both products of a tile of rows
// in one block, the hidden units a chunk at a time, so that neither the normed rows nor the hidden units go to memory.
#pragma once
#include "kernels/cuda/sum_norm.h"

namespace vitsparse::cuda {

enum class MlpTile : int { small, medium, large };  // 16, 32 and 64 rows

struct MlpParams {
  SumNormParams input;          // normed.data is null
  View dst;                     // [slices][batch, rows, outputs]
  const void *weight1, *bias1;  // [hidden][weight1_stride] and [hidden]
  const void *weight2, *bias2;  // [outputs][weight2_stride] and [outputs], or null
  int64_t weight1_stride, weight2_stride;
  int hidden, outputs;
  // With few rows the hidden units can be shared among blocks: slice s writes its part of the result at dst.data + s *
  // slice_stride (numbers), and the parts add up to the result. At least 1; more only where the sum is none of the sources.
  int slices = 1;
  int64_t slice_stride = 0;
};

// Whether a tile fits in shared memory and registers; if not, take sum_norm() and linear() twice.
bool mlp_fits(const MlpParams& params, const Context& context);
// How many slices keep the device busy; 1 with many rows.
int mlp_slices(const MlpParams& params, const Context& context);
cudaError_t mlp(const MlpParams& params, const Context& context);

// The two halves of mlp(), one for each level; mlp.cu chooses.
cudaError_t mlp_sm75(const MlpParams& params, MlpTile tile, const Context& context);
cudaError_t mlp_sm80(const MlpParams& params, MlpTile tile, const Context& context);

}  // namespace vitsparse::cuda
