// linear at level sm90, for what is large enough for tiles of 128 x 128: two warpgroups multiply 64 rows each straight from
// shared memory, which frees the registers of fragments and two thirds of the instructions. Three slices of 64 inputs,
// filled by cp.async; two blocks on a multiprocessor, so that one multiplies while the other waits or writes.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace vitsparse::cuda {
namespace {

struct HopperLinear {
  static constexpr int rows = 128, loaded_rows = rows, columns = 128, warps_m = 8, warps_n = 1, warps_k = 1;
  static constexpr int strips = 4, strip_rows = 0, strip_columns = 32;  // of a warp: 16 x 32, side by side
  static constexpr int row_bytes = 128, table = (rows + columns) * row_bytes, stage = table, stages = 3;
  static constexpr int shared = stages * stage + 1024;
  __device__ __forceinline__ static int place(int row, int chunk) { return row * 128 + 16 * (chunk ^ row % 8); }
};

template <class T>
__global__ void __launch_bounds__(256, 2) linear_warpgroups(LinearParams params) {
  using Shape = HopperLinear;
  const int across = ceil_div(params.outputs, Shape::columns), task = blockIdx.x;
  const int row0 = task / across * Shape::rows, column0 = task % across * Shape::columns;
  const int slices = ceil_div(params.inputs * static_cast<int>(sizeof(T)), Shape::row_bytes);
  unsigned char* ring = align_1024(shared_memory());
  const auto stage_of = [&](int s) { return s < slices ? ring + s % Shape::stages * Shape::stage : nullptr; };

  typename WarpGroup<T>::Sums sums = {};
  LinearLoader<Level::sm90, T, Shape> loader(params, row0, column0);
#pragma unroll
  for (int s = 0; s < Shape::stages - 1; ++s) loader.begin(stage_of(s));
  for (int s = 0; s < slices; ++s) {
    wait_copies<Level::sm90, Shape::stages - 2>();
    fence_async_proxy();
    __syncthreads();  // slice s has arrived, and all are done with the one before
    const unsigned char* a = stage_of(s) + threadIdx.x / 128 * (64 * Shape::row_bytes);
    const unsigned char* b = stage_of(s) + Shape::rows * Shape::row_bytes;
    WarpGroup<T>::begin(sums);
#pragma unroll
    for (int k = 0; k < Shape::row_bytes; k += 32) WarpGroup<T>::multiply(sums, a + k, b + k);
    loader.begin(stage_of(s + Shape::stages - 1));
    WarpGroup<T>::end(sums);
  }
  wait_copies<Level::sm90, 0>();
  __syncthreads();
  write_sums<T, Shape>(params, sums, row0, column0);
}

}  // namespace

cudaError_t linear_sm90(const LinearParams& params, const Context& context) {
  const Grid grid{linear_tasks(params, LinearTile::large), 256, HopperLinear::shared};
  return launch(context.dtype == Dtype::bfloat16 ? linear_warpgroups<__nv_bfloat16> : linear_warpgroups<__half>, params, grid,
                context);
}

}  // namespace vitsparse::cuda
