// attention: one task for each (image, head, group of query rows); each warp takes 16 rows.
//
//   attention_tasks<T>(params, threads)     how many tasks there are for blocks of `threads`
//   attention_shared<T>(params, threads)    bytes of shared memory that a task needs
//   attention_task<level, T>(params, task)  by all threads of a block: a multiple of 32 up to 256; head_dim up to 128
//
// Keys and values pass through two tiles of at most 64 rows, so any number of them works: while one is worked on the other
// is filled (on sm75 other blocks of the multiprocessor fill the gap). 128 keys, of heads up to 64, are all there at once.
#pragma once
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/attention.h"

namespace vitsparse::cuda {

// Warps that have rows in a block of `threads`; the others help loading. More do not fit in 64 KB for wide heads.
template <class T>
__host__ __device__ constexpr int attention_warps(int head_dim, int threads) {
  const int most = head_dim <= 64 ? 8 : std::is_same_v<T, float> ? 2 : 6, warps = threads / 32;
  return warps < most ? warps : most;
}

template <class T>
__host__ __device__ constexpr int attention_groups(const AttentionParams& params, int threads) {
  return ceil_div(params.queries, 16 * attention_warps<T>(params.head_dim, threads));
}

template <class T>
__host__ __device__ constexpr int attention_tasks(const AttentionParams& params, int threads) {
  return params.batch * params.heads * attention_groups<T>(params, threads);
}

// Rows of keys (and of values) in shared memory.
template <class T>
__host__ __device__ constexpr int resident_keys(const AttentionParams& params) {
  const int all = round_up(params.keys, 16), most = 2 * (params.head_dim <= 64 ? key_chunk<T, 64> : key_chunk<T, 128>);
  return all < most ? all : most;
}

template <class T>
__host__ __device__ constexpr int attention_shared(const AttentionParams& params, int threads) {
  const int warps = attention_warps<T>(params.head_dim, threads);
  const int rows = 16 * warps + 2 * resident_keys<T>(params);
  const int numbers = rows * padded<T>(padded_head(params.head_dim)) + warps * left_scratch<T>;
  return numbers * static_cast<int>(sizeof(T));
}

// Rows of a head of one image.
template <class T>
struct HeadRows {
  T* data;
  int64_t stride;

  __device__ HeadRows(const View& view, int image, int column)
      : data(static_cast<T*>(view.data) + image * view.image_stride + column), stride(view.row_stride) {}
  __device__ bool aligned() const { return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % per_16_bytes<T> == 0; }
  __device__ T* row(int r) const { return data + r * stride; }
  __device__ const T* row_before(int r, int end) const { return r < end ? row(r) : nullptr; }
};

template <Level level, class T, int width>
__device__ __forceinline__ void attention_task_of(const AttentionParams& params, int task) {
  constexpr int chunk = key_chunk<T, width>, stride = padded<T>(width);
  const int warps = attention_warps<T>(width, blockDim.x), warp = warp_index();
  const int groups = attention_groups<T>(params, blockDim.x), first = task % groups * 16 * warps;
  const int head = task / groups % params.heads, image = task / groups / params.heads;
  const int column = head * params.head_dim, rows = params.queries - first;
  const HeadRows<T> dst(params.dst, image, column);
  if (params.head_keep != nullptr && params.head_keep[image * params.heads + head] == 0)
    return clear_rows(dst.row(first), dst.stride, rows < 16 * warps ? rows : 16 * warps, params.head_dim);

  const HeadRows<T> q(params.q, image, column), k(params.k, image, column), v(params.v, image, column);
  const int resident = resident_keys<T>(params), chunks = ceil_div(params.keys, chunk), q_rows = 16 * warps;
  T* q_tile = reinterpret_cast<T*>(shared_memory());
  T *k_tile = q_tile + q_rows * stride, *v_tile = k_tile + resident * stride;
  T* scratch = v_tile + resident * stride + warp * left_scratch<T>;
  const bool aligned = q.aligned() && k.aligned() && v.aligned();
  // Queries and the first two chunks in one go: they are one tile.
  load_tile<level>(q_tile, stride, q_rows + 2 * resident, width, params.head_dim, aligned, [&](int r) {
    if (r < q_rows) return q.row_before(first + r, params.queries);
    return r < q_rows + resident ? k.row_before(r - q_rows, params.keys) : v.row_before(r - q_rows - resident, params.keys);
  });
  commit_copies<level>();

  const bool busy = warp < warps && 16 * warp < rows;
  const float factor = params.scale * log2_e;
  QueryRows<level, T, width> state;
  state.begin();
  wait_copies<level, 0>();
  for (int c = 0; c < chunks; ++c) {
    wait_copies<level, 1>();
    __syncthreads();
    const int at = c % 2 * chunk * stride, live = params.keys - c * chunk, next = (c + 2) * chunk;
    if (busy) {
      if (c == 0) state.load(q_tile + 16 * warp * stride);
      state.add_keys(k_tile + at, v_tile + at, live < chunk ? live : chunk, factor, scratch);
    }
    __syncthreads();
    if (next < params.keys) {
      const auto load = [&](T* tile, const HeadRows<T>& head) {
        load_tile<level>(tile, stride, chunk, width, params.head_dim, aligned,
                         [&](int r) { return head.row_before(next + r, params.keys); });
      };
      load(k_tile + at, k);
      load(v_tile + at, v);
    }
    commit_copies<level>();
  }
  if (busy) state.end(dst.row(first + 16 * warp), dst.stride, rows - 16 * warp, params.head_dim);
}

template <Level level, class T>
__device__ __forceinline__ void attention_task(const AttentionParams& params, int task) {
  switch (padded_head(params.head_dim)) {
    case 32: return attention_task_of<level, T, 32>(params, task);
    case 64: return attention_task_of<level, T, 64>(params, task);
    default: return attention_task_of<level, T, 128>(params, task);
  }
}

template <Level level, class T, int width>
__global__ void __launch_bounds__(256, std::is_same_v<T, float> && width < 128 ? 2 : 1)
attention_kernel(AttentionParams params) {
  attention_task_of<level, T, width>(params, blockIdx.x);
}

}  // namespace vitsparse::cuda
