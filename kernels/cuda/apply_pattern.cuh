// apply_pattern: one task for each (image, head, tile of dst), by 256 threads; each warp makes 16 rows of 32 columns.
//
//   apply_pattern_task<level, T>(params, task)   task < apply_pattern_tasks(params); ends synchronised
//   apply_pattern_shared<T>()                    bytes of shared memory that it uses, from the beginning
//
// A tile is 128 rows of 32 columns, or 64 of 64 for heads wider than 32. 64 keys at a time lie in shared memory, columns of
// the pattern beside rows of v. The patterns of all heads are small and the same for all images: they stay in the
// second-level cache.
#pragma once
#include "kernels/cuda/apply_pattern.h"
#include "kernels/cuda/tile.cuh"

namespace vitsparse::cuda {

constexpr int pattern_keys = 64, pattern_columns = 64, pattern_rows = 128;  // the most of each

__host__ __device__ constexpr int pattern_warps_across(int head_dim) { return head_dim <= 32 ? 1 : 2; }

__host__ __device__ inline int apply_pattern_tasks(const ApplyPatternParams& p) {
  const int across = pattern_warps_across(p.head_dim);
  return p.batch * p.heads * ceil_div(p.queries, pattern_rows / across) * ceil_div(p.head_dim, 32 * across);
}

template <class T>
__host__ __device__ constexpr int apply_pattern_shared() {
  return (pattern_rows * padded<T>(pattern_keys) + pattern_keys * padded<T>(pattern_columns)) * static_cast<int>(sizeof(T));
}

// Which part of dst a task makes.
struct PatternTile {
  int image, head, row, column;  // column: within the head
  __device__ PatternTile(const ApplyPatternParams& p, int task, int rows, int columns) {
    const int down = ceil_div(p.queries, rows), across = ceil_div(p.head_dim, columns);
    column = task % across * columns;
    row = task / across % down * rows;
    head = task / (across * down) % p.heads;
    image = task / (across * down) / p.heads;
  }
};

template <class T>
__device__ __forceinline__ void store_pattern_sums(const Sums<4>& sums, T* dst, int64_t stride, int rows, int columns) {
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    for_each_of_tile(n, [&](int row, int column, int i) {
      if (row < rows && column < columns) dst[row * stride + column] = from_float<T>(sums[n][i]);
    });
  }
}

template <Level level, class T>
__device__ __forceinline__ void apply_pattern_task(const ApplyPatternParams& p, int task) {
  constexpr int stride = padded<T>(pattern_keys), v_stride = padded<T>(pattern_columns);
  const int across = pattern_warps_across(p.head_dim), rows = pattern_rows / across, columns = 32 * across;
  const PatternTile tile(p, task, rows, columns);
  const T* pattern = static_cast<const T*>(p.pattern) + (int64_t{tile.head} * p.queries + tile.row) * p.keys;
  const int head_column = tile.head * p.head_dim + tile.column;
  const T* v = static_cast<const T*>(p.v.data) + tile.image * p.v.image_stride + head_column;
  T* patterns = reinterpret_cast<T*>(shared_memory());
  T* values = patterns + pattern_rows * stride;
  const int live_rows = p.queries - tile.row < rows ? p.queries - tile.row : rows;
  const int warp_row = threadIdx.x / 32 / across * 16, warp_column = threadIdx.x / 32 % across * 32;
  const auto aligned = [](const T* rows, int64_t stride) {
    return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride % per_16_bytes<T> == 0;
  };

  Sums<4> sums = {};
  for (int key = 0; key < p.keys; key += pattern_keys) {
    const int live = p.keys - key < pattern_keys ? p.keys - key : pattern_keys, padded_keys = round_up(live, 16);
    load_tile<level>(patterns, stride, round_up(live_rows, 16), padded_keys, live, aligned(pattern, p.keys),
                     [&](int r) { return r < live_rows ? pattern + int64_t{r} * p.keys + key : nullptr; });
    load_tile<level>(values, v_stride, padded_keys, columns, p.head_dim - tile.column, aligned(v, p.v.row_stride),
                     [&](int r) { return r < live ? v + (key + r) * p.v.row_stride : nullptr; });
    commit_copies<level>();
    wait_copies<level, 0>();
    __syncthreads();
    if (warp_row < live_rows) {
      for (int k = 0; k < padded_keys; k += 16)
        Warp<level, T>::template multiply<true, 4>(sums, patterns + warp_row * stride + k, stride,
                                                   values + k * v_stride + warp_column, v_stride);
    }
    __syncthreads();
  }
  T* dst = static_cast<T*>(p.dst.data) + tile.image * p.dst.image_stride + (tile.row + warp_row) * p.dst.row_stride;
  store_pattern_sums(sums, dst + head_column + warp_column, p.dst.row_stride, live_rows - warp_row,
                     p.head_dim - tile.column - warp_column);
}

template <Level level, class T>
__global__ void __launch_bounds__(256, 2) apply_pattern_kernel(ApplyPatternParams params) {
  apply_pattern_task<level, T>(params, blockIdx.x);
}

}  // namespace vitsparse::cuda
