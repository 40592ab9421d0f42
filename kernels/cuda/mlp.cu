// The fused MLP: which tile, how many slices, and which level's code.
#include "kernels/cuda/mlp.h"

#include "kernels/cuda/mlp.cuh"

namespace vitsparse::cuda {
namespace {

bool old_code(const Context& context) { return context.level == Level::sm75 || context.dtype == Dtype::float32; }

bool tile_fits(const MlpParams& params, MlpTile tile, const Context& context) {
  if (context.dtype == Dtype::float32 && tile != MlpTile::small) return false;
  const int shared = context.dtype == Dtype::float32 ? mlp_shared<Level::sm75, float>(params, tile)
                     : old_code(context)             ? mlp_shared<Level::sm75, __half>(params, tile)
                                                     : mlp_shared<Level::sm80, __half>(params, tile);
  return params.outputs <= mlp_outputs(tile) && shared <= context.shared_limit;
}

// Time of a tile's rows, in rows: the products, and as much again as 16 rows for the weights that stream by.
int64_t cost(const MlpParams& params, MlpTile tile, const Context& context) {
  const int tasks = mlp_tasks(params, tile);
  return int64_t{ceil_div(tasks, context.multiprocessors)} * (mlp_size(tile).rows + 16);
}

MlpTile best_tile(const MlpParams& params, const Context& context) {
  MlpTile best = MlpTile::small;
  for (const MlpTile tile : {MlpTile::medium, MlpTile::large})
    if (tile_fits(params, tile, context) && cost(params, tile, context) <= cost(params, best, context)) best = tile;
  return best;
}

}  // namespace

bool mlp_fits(const MlpParams& params, const Context& context) { return tile_fits(params, MlpTile::small, context); }

int mlp_slices(const MlpParams& params, const Context& context) {
  MlpParams whole = params;
  whole.slices = 1;
  const MlpTile tile = best_tile(whole, context);
  const int chunks = ceil_div(params.hidden, mlp_size(tile).columns);
  const int room = context.multiprocessors / (mlp_tasks(whole, tile) > 0 ? mlp_tasks(whole, tile) : 1);
  if (tile != MlpTile::small || chunks < 3 || room < 2) return 1;  // adding up the slices is a launch of its own
  return ceil_div(chunks, ceil_div(chunks, room));                // no more than finish as early
}

cudaError_t mlp(const MlpParams& params, const Context& context) {
  if (!mlp_fits(params, context)) return cudaErrorInvalidValue;
  const MlpTile tile = params.slices > 1 ? MlpTile::small : best_tile(params, context);
  return (old_code(context) ? mlp_sm75 : mlp_sm80)(params, tile, context);
}

}  // namespace vitsparse::cuda
