// A product that makes the sum and norm in front of it: a tile of 16 rows x 32 columns per task, by 256 threads.
//
//   norm_linear_task<level, T>(params, task)  task < norm_linear_tasks(params); all 256 threads; ends synchronised
//   norm_linear_shared<level, T>(params)      bytes of shared memory they use, from the beginning
//
// The weights do not depend on the sum, so their first slices are on their way while each warp makes two of the 16 rows
// (sum_norm.cuh), straight into shared memory. Then it is linear's small tile, but for the rows: they are there whole,
// behind the ring of slices, and need not go round.
#pragma once
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/norm_linear.h"
#include "kernels/cuda/sum_norm.cuh"

namespace vitsparse::cuda {

using NormLinearShape = LinearShape<SmallLinear::rows, SmallLinear::columns, 1, 1, 8, 0>;
constexpr int norm_linear_slice = NormLinearShape::row_bytes * NormLinearShape::warps_k;  // bytes of a row in a slice

// Bytes from row to row of the normed tile: eight rows side by side begin in different banks.
__host__ __device__ inline int norm_linear_stride(int row_bytes) { return round_up(row_bytes, norm_linear_slice) + 16; }

__host__ __device__ inline int norm_linear_tasks(const NormLinearParams& params) {
  return linear_tasks(params.product, LinearTile::small);
}

// Bytes of the ring, behind which the tile begins.
template <Level level, class T>
__host__ __device__ int norm_linear_ring(const NormLinearParams& params) {
  const int slices = ceil_div(params.product.inputs * static_cast<int>(sizeof(T)), norm_linear_slice);
  return (slices < linear_stages<level> ? slices : linear_stages<level>) * NormLinearShape::stage;
}

template <Level level, class T>
__host__ __device__ int norm_linear_shared(const NormLinearParams& params) {
  const int tile = NormLinearShape::rows * norm_linear_stride(params.product.inputs * static_cast<int>(sizeof(T)));
  static_assert(NormLinearShape::stage + NormLinearShape::rows * (norm_linear_slice + 16) >= linear_strips);
  return norm_linear_ring<level, T>(params) + tile;
}

// The rows of the tile from row0 of the list on, with zeros behind each. What is beyond the last row stays as it is: its
// products are not written.
template <class T>
__device__ __forceinline__ void gather_rows(const NormLinearParams& params, unsigned char* tile, int row0, bool first) {
  const LinearParams& product = params.product;
  const T* offset = static_cast<const T*>(params.offset);
  const int stride = norm_linear_stride(product.inputs * static_cast<int>(sizeof(T)));
  const int end = round_up(product.inputs, norm_linear_slice / static_cast<int>(sizeof(T)));
#pragma unroll 1
  for (int r = threadIdx.x / 32; r < NormLinearShape::rows; r += 8) {
    const int image = (row0 + r) / product.rows, row = (row0 + r) % product.rows;
    if (image >= product.batch) break;
    T* to = reinterpret_cast<T*>(tile + r * stride);
    sum_norm_row<T>(product.inputs, params.eps, params.count, params.minuses,
                    [&](int i) -> const T* { return row_of<const T>(params.sources[i], image, row); },
                    offset == nullptr ? nullptr : offset + row * params.offset_stride,
                    first ? row_or_null<T>(params.sum, image, row) : nullptr, to);
    for (int c = product.inputs + threadIdx.x % 32; c < end; c += 32) to[c] = from_float<T>(0.f);
  }
}

template <Level level, class T>
__device__ __forceinline__ void norm_linear_task(const NormLinearParams& params, int task) {
  const LinearParams& product = params.product;
  const int across = ceil_div(product.outputs, NormLinearShape::columns);
  const int row0 = task / across * NormLinearShape::rows, part = task % across;  // part 0 stores the sum
  const int stride = norm_linear_stride(product.inputs * static_cast<int>(sizeof(T)));
  unsigned char* tile = shared_memory() + norm_linear_ring<level, T>(params);
  const unsigned char* of_warp = tile + threadIdx.x / 32 * NormLinearShape::row_bytes;
  linear_tile_of<level, T, false, NormLinearShape>(
      product, row0, part * NormLinearShape::columns, [&] { gather_rows<T>(params, tile, row0, part == 0); },
      [=](int s, const unsigned char*) {
        return [=](int row, int chunk) { return of_warp + row * stride + s * norm_linear_slice + chunk * 16; };
      });
}

template <Level level, class T>
__global__ void __launch_bounds__(256, level == Level::sm75 ? 1 : 2) norm_linear_kernel(NormLinearParams params) {
  norm_linear_task<level, T>(params, blockIdx.x);
}

}  // namespace vitsparse::cuda
