// Copies and means, by tasks of a block of any multiple of 32 threads; shared memory is used by mean_rows alone.
//
//   patches_task<T>(params, task)   task < patches_tasks<T>(params)      likewise fill
//   mean_rows_task<T>(params, task) task < mean_rows_tasks(params); mean_rows_shared bytes; ends synchronised
//
// Neighbouring threads write neighbouring numbers, 16 bytes each where pieces and addresses allow it, else one number.
#pragma once
#include "kernels/cuda/moves.h"
#include "kernels/cuda/tile.cuh"

namespace vitsparse::cuda {

constexpr int moves_a_task = 256;
constexpr int mean_columns = 64;  // of a task

// Whether rows of pieces of `piece` numbers move 16 bytes at a time: where they come from, and where they go.
template <class T>
__host__ __device__ bool moves_vectors(const void* from, const View& to, int piece) {
  const int64_t odd = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to.data);
  return odd % 16 == 0 && (to.image_stride | to.row_stride | piece) % per_16_bytes<T> == 0;
}
template <class T>
__host__ __device__ int moves_tasks_an_image(int64_t numbers, bool vectors) {
  const int64_t moves = vectors ? numbers / per_16_bytes<T> : numbers;
  return static_cast<int>((moves + moves_a_task - 1) / moves_a_task);
}

// Moves part `task` of rows of `width` numbers: place(row, column) says where the numbers from there on come from.
template <class T, class Place>
__device__ __forceinline__ void move_rows(const View& dst, int task, int rows, int width, bool vectors, Place place) {
  const int numbers = vectors ? per_16_bytes<T> : 1, of_image = moves_tasks_an_image<T>(int64_t{rows} * width, vectors);
  const int image = task / of_image, across = width / numbers, begin = (task - image * of_image) * moves_a_task;
  T* to = static_cast<T*>(dst.data) + image * dst.image_stride;
  for (int i = threadIdx.x; i < moves_a_task; i += blockDim.x) {
    const int row = (begin + i) / across, column = (begin + i - row * across) * numbers;
    if (row >= rows) return;
    const T* from = place(image, row, column);
    T* at = to + row * dst.row_stride + column;
    if (vectors) *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(from);
    else *at = *from;
  }
}

__host__ __device__ inline int patches_rows(const PatchesParams& p) { return (p.size / p.patch) * (p.size / p.patch); }

template <class T>
__host__ __device__ bool patches_vectors(const PatchesParams& p) { return moves_vectors<T>(p.images, p.dst, p.patch); }

template <class T>
__host__ __device__ int patches_tasks(const PatchesParams& p) {
  const int64_t numbers = int64_t{p.channels} * p.size * p.size;
  return p.batch * moves_tasks_an_image<T>(numbers, patches_vectors<T>(p));
}

template <class T>
__device__ __forceinline__ void patches_task(const PatchesParams& p, int task) {
  const int side = p.size / p.patch, area = p.patch * p.patch;
  const T* images = static_cast<const T*>(p.images);
  move_rows<T>(p.dst, task, side * side, p.channels * area, patches_vectors<T>(p), [&](int image, int row, int column) {
    const int channel = column / area, inside = column - channel * area;
    const int y = row / side * p.patch + inside / p.patch, x = row % side * p.patch + inside % p.patch;
    return images + ((int64_t{image} * p.channels + channel) * p.size + y) * p.size + x;
  });
}

template <class T>
__host__ __device__ bool fill_vectors(const FillParams& p) { return moves_vectors<T>(p.constant, p.dst, p.width); }

template <class T>
__host__ __device__ int fill_tasks(const FillParams& p) {
  return p.batch * moves_tasks_an_image<T>(int64_t{p.rows} * p.width, fill_vectors<T>(p));
}

template <class T>
__device__ __forceinline__ void fill_task(const FillParams& p, int task) {
  const T* constant = static_cast<const T*>(p.constant);
  move_rows<T>(p.dst, task, p.rows, p.width, fill_vectors<T>(p),
               [&](int, int row, int column) { return constant + int64_t{row} * p.width + column; });
}

__host__ __device__ inline int mean_rows_tasks(const MeanRowsParams& p) {
  return p.batch * ceil_div(p.width, mean_columns);
}
__host__ __device__ constexpr int mean_rows_shared(int threads) {
  return threads / 32 * mean_columns * static_cast<int>(sizeof(float));
}

// Each warp adds up some of the rows, two columns a lane; then the warps' sums are added.
template <class T>
__device__ __forceinline__ void mean_rows_task(const MeanRowsParams& p, int task) {
  const int across = ceil_div(p.width, mean_columns), image = task / across, first = task % across * mean_columns;
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const T* src = static_cast<const T*>(p.src.data) + image * p.src.image_stride + first;
  float* sums = reinterpret_cast<float*>(shared_memory());
  float total[2] = {0.f, 0.f};
#pragma unroll 4
  for (int row = warp; row < p.rows; row += warps) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (first + lane + 32 * i < p.width) total[i] += to_float(src[row * p.src.row_stride + lane + 32 * i]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) sums[warp * mean_columns + lane + 32 * i] = total[i];
  __syncthreads();
  T* dst = static_cast<T*>(p.dst.data) + image * p.dst.image_stride + first;
  for (int c = threadIdx.x; c < mean_columns && first + c < p.width; c += blockDim.x) {
    float sum = 0.f;
    for (int w = 0; w < warps; ++w) sum += sums[w * mean_columns + c];
    dst[c] = from_float<T>(sum / static_cast<float>(p.rows));
  }
  __syncthreads();
}

}  // namespace vitsparse::cuda
