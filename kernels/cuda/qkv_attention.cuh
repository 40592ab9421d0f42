// qkv_attention: one task for each (image, head); nothing but the result goes to memory.
//
//   qkv_attention_tasks(params)                          how many tasks there are
//   qkv_attention_threads(params)                        the number of threads that suits best
//   qkv_attention_shared<level, T>(params, threads)      bytes of shared memory that a task needs
//   qkv_attention_holds<level, T>(params, threads, limit)  whether blocks of `threads` with `limit` bytes can do it
//   qkv_attention_task<level, T>(params, task, half)     by all threads of a block: a multiple of 32 up to 256
//
// First the products: slices of 64 bytes of the image's rows, and of the head's 3 head_dim rows of the weight, go round in
// a ring (from sm80 on cp.async fills two slices ahead; on sm75 a thread holds the next slice in registers while it
// multiplies). A warp keeps q, k and v of its 16 rows, or 32, in registers. Then k and v take the place of the ring, q
// becomes the left factor as it lies in registers, and attend.cuh does the rest.
#pragma once
#include "kernels/cuda/attend.cuh"
#include "kernels/cuda/qkv_attention.h"

namespace vitsparse::cuda {

template <Level level>
constexpr int qkv_stages = level == Level::sm75 ? 2 : 3;

__host__ __device__ inline int qkv_attention_tasks(const QkvAttentionParams& params) { return params.batch * params.heads; }

// Tiles of 16 rows that a warp has.
__host__ __device__ inline int qkv_depth(const QkvAttentionParams& params, int threads) {
  return ceil_div(ceil_div(params.tokens, 16), threads / 32);
}

// As many warps as tiles of rows, or half of that; a few more than a short sequence needs, for loading.
__host__ __device__ inline int qkv_attention_threads(const QkvAttentionParams& params) {
  const int tiles = ceil_div(params.tokens, 16), warps = ceil_div(tiles, ceil_div(tiles, 8));
  return 32 * (warps < 4 ? 4 : warps);
}

template <Level level, class T>
__host__ __device__ int qkv_attention_shared(const QkvAttentionParams& params, int threads) {
  const int width = padded_head(params.head_dim), rows = round_up(params.tokens, 16);
  const int ring = qkv_stages<level> * (rows + 3 * width) * padded<T>(64 / sizeof(T));
  const int scratch = threads / 32 * qkv_depth(params, threads) * (width / 16 + 1) * left_scratch<T>;
  const int tiles = 2 * rows * padded<T>(width) + scratch;
  return (ring > tiles ? ring : tiles) * static_cast<int>(sizeof(T));
}

template <Level level, class T>
__host__ __device__ bool qkv_attention_holds(const QkvAttentionParams& params, int threads, int limit) {
  const int depth = qkv_depth(params, threads), width = padded_head(params.head_dim);
  if (std::is_same_v<T, float> && depth > 1) return false;
  return depth * width <= 64 && qkv_attention_shared<level, T>(params, threads) <= limit;  // registers, memory
}

// Brings slices of the inputs to shared memory: rows of the image, up to a multiple of 16, then the head's of the weight.
// A thread has the same 16 of the 64 bytes of each of its rows: `most` of them at known places, and others found anew.
template <Level level, class T, int width>
struct QkvSlices {
  static constexpr int slice = 64 / static_cast<int>(sizeof(T)), stride = padded<T>(slice), vector = per_16_bytes<T>;
  static constexpr int most = 8;

  const QkvAttentionParams& params;
  const int image, head, x_rows, rows;
  const T* from[most];  // in the next slice, of rows that are there
  unsigned there = 0;   // bit j: the thread's j-th row is none of padding
  int left;             // numbers from here to the end of a row
  bool quick;           // 16 bytes at once
  uint4 held[level == Level::sm75 ? most : 1];

  __device__ QkvSlices(const QkvAttentionParams& params, int image, int head)
      : params(params), image(image), head(head), x_rows(round_up(params.tokens, 16)), rows(x_rows + 3 * width),
        left(params.inputs - chunk()) {
    const auto at = reinterpret_cast<uintptr_t>(source(0)) | reinterpret_cast<uintptr_t>(source(x_rows));
    quick = at % 16 == 0 && (params.src.row_stride | params.weight_stride) % vector == 0 &&
            (int64_t{params.heads} * params.head_dim * params.weight_stride) % vector == 0;
    if (level == Level::sm75) quick = quick && params.inputs % vector == 0;
#pragma unroll
    for (int j = 0; j < most; ++j) {
      const T* row = row_at(j) < rows ? source(row_at(j)) : nullptr;
      if (row != nullptr) there |= 1u << j;
      from[j] = row != nullptr ? row + chunk() : source(0);
    }
  }

  __device__ __forceinline__ int size() const { return rows * stride; }

  // The next slice begins on its way to `stage`; on sm75 finish(), later, puts it there.
  __device__ __forceinline__ void begin(T* stage) {
    if (quick) {
      const int numbers = left < 0 ? 0 : left < vector ? left : vector;
#pragma unroll
      for (int j = 0; j < most; ++j) {
        const int mine = there >> j & 1 ? numbers : 0;
        if constexpr (level == Level::sm75) {
          held[j] = mine == 0 ? make_uint4(0, 0, 0, 0) : *reinterpret_cast<const uint4*>(from[j]);
        } else if (row_at(j) < rows) {
          copy_16<level>(place(stage, j), from[j], mine * static_cast<int>(sizeof(T)));
        }
        from[j] += slice;
      }
    }
    if (level != Level::sm75) copy_rest(stage);
  }
  __device__ __forceinline__ void finish(T* stage) {
    if constexpr (level == Level::sm75) {
#pragma unroll
      for (int j = 0; j < most; ++j) {
        if (quick && row_at(j) < rows) *reinterpret_cast<uint4*>(place(stage, j)) = held[j];
      }
      copy_rest(stage);
    }
  }

 private:
  __device__ static int row_at(int j) { return (threadIdx.x + j * blockDim.x) / 4; }
  __device__ static int chunk() { return threadIdx.x % 4 * vector; }
  __device__ static T* place(T* stage, int j) { return stage + row_at(j) * stride + chunk(); }

  // The beginning of a row; null for padding.
  __device__ __forceinline__ const T* source(int row) const {
    if (row < x_rows) {
      const T* x = static_cast<const T*>(params.src.data) + image * params.src.image_stride;
      return row < params.tokens ? x + row * params.src.row_stride : nullptr;
    }
    const int part = (row - x_rows) / width, column = (row - x_rows) % width;
    const int64_t of_weight = (int64_t{part} * params.heads + head) * params.head_dim + column;
    return column < params.head_dim ? static_cast<const T*>(params.weight) + of_weight * params.weight_stride : nullptr;
  }

  // What begin() did not copy; closes the slice.
  __device__ __forceinline__ void copy_rest(T* stage) {
#pragma unroll 1
    for (int j = quick ? most : 0; row_at(j) < rows; ++j) {
      const T* row = source(row_at(j));
      const int numbers = row == nullptr ? 0 : left;
      for (int i = 0; i < vector; ++i)
        place(stage, j)[i] = i < numbers ? row[params.inputs - left + i] : from_float<T>(0.f);
    }
    left -= slice;
  }
};

// The products of a slice: sums[d] += the 16 rows x[d] times 8 * tiles rows of w.
template <Level level, class T, int tiles, int depth>
struct QkvProduct {
  static constexpr int stride = padded<T>(32);

  __device__ __forceinline__ static void add(Sums<tiles> (&sums)[depth], const T* const (&x)[depth], const T* w, bool half) {
    uint32_t left[depth][2][4];
#pragma unroll
    for (int d = 0; d < depth; ++d)
#pragma unroll
      for (int k = 0; k < 2; ++k) Warp<level, T>::load_left(left[d][k], x[d] + 16 * k, stride);
    if constexpr (std::is_same_v<T, __half> && level != Level::sm75) {  // sm75 adds up in float32 as fast
      if (half) return add_halves(sums, left, w);
    }
#pragma unroll
    for (int n = 0; n < tiles; n += 2)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        uint32_t right[4];
        load_right(right, w, n, k);
        const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
        for (int d = 0; d < depth; ++d) {
          TensorCore<level, T>::mma(sums[d][n], left[d][k], first);
          TensorCore<level, T>::mma(sums[d][n + 1], left[d][k], second);
        }
      }
  }

 private:
  __device__ __forceinline__ static void load_right(uint32_t (&right)[4], const T* w, int n, int k) {
    const int lane = threadIdx.x % 32;
    load_matrices(right, w + (8 * (n + lane / 16) + lane % 8) * stride + 16 * k + 8 * (lane / 8 % 2));
  }

  __device__ __forceinline__ static void add_halves(Sums<tiles> (&sums)[depth], const uint32_t (&left)[depth][2][4],
                                                    const T* w) {
#pragma unroll
    for (int n = 0; n < tiles; n += 2) {
      uint32_t part[depth][2][2] = {};
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        uint32_t right[4];
        load_right(right, w, n, k);
        const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
        for (int d = 0; d < depth; ++d) {
          TensorCore<level, T>::mma(part[d][0], left[d][k], first);
          TensorCore<level, T>::mma(part[d][1], left[d][k], second);
        }
      }
#pragma unroll
      for (int d = 0; d < depth; ++d)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          T pair[2];
          memcpy(pair, &part[d][i / 4][i % 4 / 2], 4);
          sums[d][n + i / 4][i % 4] += to_float(pair[i % 2]);
        }
    }
  }
};

template <Level level, int tiles, int depth>
struct QkvProduct<level, float, tiles, depth> {
  static constexpr int stride = padded<float>(16);
  __device__ static void add(Sums<tiles> (&sums)[depth], const float* const (&x)[depth], const float* w, bool) {
#pragma unroll
    for (int d = 0; d < depth; ++d) Warp<level, float>::template multiply<false, tiles>(sums[d], x[d], stride, w, stride);
  }
};

// The 16-row tiles of one warp: q, k, v as sums, then softmax(q k^T) v.
template <Level level, class T, int width, int depth>
struct QkvHead {
  static constexpr int part = width / 8, stride = padded<T>(width), chunk = key_chunk<T, width>;
  const QkvAttentionParams& params;
  const int image, head, rows, tiles, warp, warps;
  Sums<3 * part> sums[depth];

  __device__ QkvHead(const QkvAttentionParams& params, int image, int head)
      : params(params), image(image), head(head), rows(round_up(params.tokens, 16)), tiles(rows / 16),
        warp(warp_index()), warps(blockDim.x / 32) {}

  __device__ __forceinline__ int tile(int d) const { return warp + d * warps; }

  // Sums begin with the bias, zero in the columns of padding.
  __device__ __forceinline__ void begin() {
    const T* bias = static_cast<const T*>(params.bias);
#pragma unroll
    for (int n = 0; n < 3 * part; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = 8 * (n % part) + 2 * (threadIdx.x % 4) + j;
        const bool there = bias != nullptr && column < params.head_dim;
        const float value = there ? to_float(bias[(n / part * params.heads + head) * params.head_dim + column]) : 0.f;
#pragma unroll
        for (int d = 0; d < depth; ++d) sums[d][n][j] = sums[d][n][j + 2] = value;
      }
  }

  __device__ __forceinline__ void multiply(bool half) {
    QkvSlices<level, T, width> slices(params, image, head);
    constexpr int stages = qkv_stages<level>;
    const int count = ceil_div(params.inputs, slices.slice);
    T* ring = reinterpret_cast<T*>(shared_memory());
    const auto stage = [&](int s) { return ring + s % stages * slices.size(); };
#pragma unroll
    for (int s = 0; s < stages - 1; ++s) {
      if (s < count) slices.begin(stage(s)), slices.finish(stage(s));
      commit_copies<level>();
    }
    begin();
    for (int s = 0; s < count; ++s) {
      wait_copies<level, stages - 2>();
      __syncthreads();  // slice s is there, and all are done with the one before
      const int next = s + stages - 1;
      if (next < count) slices.begin(stage(next));
      commit_copies<level>();
      if (warp < tiles) {
        const T* x[depth];
#pragma unroll
        for (int d = 0; d < depth; ++d) x[d] = stage(s) + 16 * (tile(d) < tiles ? tile(d) : warp) * slices.stride;
        QkvProduct<level, T, 3 * part, depth>::add(sums, x, stage(s) + rows * slices.stride, half);
      }
      if (next < count) slices.finish(stage(next));
    }
    wait_copies<level, 0>();
    __syncthreads();  // the ring is free
  }

  __device__ __forceinline__ void store_part(T* to, const Sums<3 * part>& from, int first) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < part; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        store_pair(to + (lane / 4 + 8 * r) * stride + 8 * n + 2 * (lane % 4), from[first + n][2 * r],
                   from[first + n][2 * r + 1], true);
  }

  __device__ __forceinline__ void attend() {
    T* k = reinterpret_cast<T*>(shared_memory());
    T* v = k + rows * stride;
    T* scratch = v + rows * stride + warp * depth * (width / 16 + 1) * left_scratch<T>;
    QueryRows<level, T, width> state[depth];
#pragma unroll
    for (int d = 0; d < depth; ++d) {
      if (tile(d) >= tiles) break;
      store_part(k + 16 * tile(d) * stride, sums[d], part);
      store_part(v + 16 * tile(d) * stride, sums[d], 2 * part);
#pragma unroll
      for (int s = 0; s < width / 16; ++s)
        state[d].query[s] = Left<level, T>::from_sums(sums[d][2 * s], sums[d][2 * s + 1],
                                                      scratch + (d * (width / 16) + s) * left_scratch<T>);
    }
    __syncthreads();
    scratch += depth * (width / 16) * left_scratch<T>;
    T* dst = static_cast<T*>(params.dst.data) + image * params.dst.image_stride + head * params.head_dim;
#pragma unroll
    for (int d = 0; d < depth; ++d) {
      if (tile(d) >= tiles) break;
      state[d].begin();
      for (int first = 0; first < params.tokens; first += chunk) {
        const int left = params.tokens - first;
        state[d].add_keys(k + first * stride, v + first * stride, left < chunk ? left : chunk, params.scale * log2_e,
                          scratch);
      }
      state[d].end(dst + 16 * tile(d) * params.dst.row_stride, params.dst.row_stride, params.tokens - 16 * tile(d),
                   params.head_dim);
    }
    __syncthreads();
  }
};

template <Level level, class T, int width, int depth>
__device__ __forceinline__ void qkv_attention_task_of(const QkvAttentionParams& params, int task, bool half) {
  const int image = task / params.heads, head = task % params.heads;
  if (params.head_keep != nullptr && params.head_keep[task] == 0) {
    T* dst = static_cast<T*>(params.dst.data) + image * params.dst.image_stride + head * params.head_dim;
    return clear_rows(dst, params.dst.row_stride, params.tokens, params.head_dim);
  }
  QkvHead<level, T, width, depth> work(params, image, head);
  work.multiply(half);
  work.attend();
}

template <Level level, class T>
__device__ __forceinline__ void qkv_attention_task(const QkvAttentionParams& params, int task, bool half) {
  if (params.head_dim > 32) return qkv_attention_task_of<level, T, 64, 1>(params, task, half);
  if constexpr (!std::is_same_v<T, float>) {
    if (qkv_depth(params, blockDim.x) == 2) return qkv_attention_task_of<level, T, 32, 2>(params, task, half);
  }
  qkv_attention_task_of<level, T, 32, 1>(params, task, half);
}

struct QkvAttentionLaunch {
  QkvAttentionParams params;
  bool half_accumulate;
};

template <Level level, class T, int width, int depth>
__global__ void __launch_bounds__(256) qkv_attention_kernel(QkvAttentionLaunch launch) {
  qkv_attention_task_of<level, T, width, depth>(launch.params, blockIdx.x, launch.half_accumulate);
}

}  // namespace vitsparse::cuda
