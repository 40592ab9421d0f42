// linear: which tile, and which level's code.
#include "kernels/cuda/linear.h"

#include "kernels/cuda/linear.cuh"

namespace vitsparse::cuda {

cudaError_t linear_sm75(const LinearParams& params, LinearTile tile, const Context& context);
cudaError_t linear_sm80(const LinearParams& params, LinearTile tile, const Context& context);
cudaError_t linear_sm90(const LinearParams& params, const Context& context);  // large tiles, 16 bits

LinearTile linear_tile(const LinearParams& params, const Context& context) {
  // Cycles of a multiprocessor for its share of the tasks: products at `rate` multiply-adds a cycle, then bytes of both
  // factors from the second-level cache at 64 a cycle.
  const int64_t rate = context.dtype == Dtype::float32 ? 64 : context.level == Level::sm90 ? 2048 : 512;
  const int64_t bytes = context.dtype == Dtype::float32 ? 4 : 2;
  const auto cycles = [&](LinearTile tile) {
    const double share = ceil_div(linear_tasks(params, tile), context.multiprocessors);
    const LinearSize size = linear_size(tile);
    return share * params.inputs * (size.rows * size.columns / rate + (size.rows + size.columns) * bytes / 64.);
  };
  LinearTile best = LinearTile::large;
  for (const LinearTile tile : {LinearTile::medium, LinearTile::small})
    if (cycles(tile) < cycles(best)) best = tile;
  return best;
}

cudaError_t linear(const LinearParams& params, const Context& context) {
  const LinearTile tile = linear_tile(params, context);
  if (context.level == Level::sm75 || context.dtype == Dtype::float32) return linear_sm75(params, tile, context);
  if (context.level == Level::sm90 && tile == LinearTile::large) return linear_sm90(params, context);
  return linear_sm80(params, tile, context);
}

}  // namespace vitsparse::cuda
