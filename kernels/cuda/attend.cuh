// What one warp does of an attention: softmax(q k^T) v for 16 rows of queries. Keys and values lie in shared memory and
// come in chunks of at most key_chunk; scores, weights and results stay in registers.
//
// The softmax is online: `top` is the greatest score so far and `total` the sum of 2^(score - top); a chunk with a greater
// score scales down what there was. Scores are taken times scale log2(e), so that the exponential is a power of 2.
// What a product leaves in a lane (the C layout) is, packed to 16 bits, the left factor (the A layout) of the next one: two
// neighbouring tiles of weights are a slice of 16 keys (FlashAttention-2). In float32 they go through shared memory.
#pragma once
#include <cstring>
#include <type_traits>

#include "kernels/cuda/tile.cuh"

namespace vitsparse::cuda {

// Columns that a head is padded to with zeros: registers are counted at compile time.
__host__ __device__ constexpr int padded_head(int head_dim) { return head_dim <= 32 ? 32 : head_dim <= 64 ? 64 : 128; }
constexpr float log2_e = 1.4426950408889634f;

// Keys of a chunk, for heads padded to `width`: two chunks of keys and values, and queries, fit in 64 KB.
template <class T, int width>
constexpr int key_chunk = std::is_same_v<T, float> ? 16 : width == 128 ? 32 : 64;
// Numbers of shared memory that a warp needs to turn sums into a left factor.
template <class T>
constexpr int left_scratch = std::is_same_v<T, float> ? 16 * padded<float>(16) : 0;

// From one lane for all, so that the compiler knows that a warp does not part where this decides.
__device__ __forceinline__ int warp_index() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0); }

// Two numbers of 16 bits side by side, by one conversion.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  static_assert(sizeof(T) == 2);
  uint32_t packed;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&packed, &pair, 4);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&packed, &pair, 4);
  }
  return packed;
}

// Writes two neighbours; `together`: at an address where one instruction can.
template <class T>
__device__ __forceinline__ void store_pair(T* to, float low, float high, bool together) {
  if constexpr (sizeof(T) == 2) {
    if (together) {
      *reinterpret_cast<uint32_t*>(to) = pack_pair<T>(low, high);
      return;
    }
  }
  to[0] = from_float<T>(low), to[1] = from_float<T>(high);
}

// A 16 x 16 left factor of a warp, in registers.
template <Level level, class T>
struct Left {
  uint32_t part[4];

  __device__ static Left from_shared(const T* tile, int stride) {
    Left left;
    Warp<level, T>::load_left(left.part, tile, stride);
    return left;
  }
  // Of the sums of two neighbouring tiles.
  __device__ static Left from_sums(const float (&low)[4], const float (&high)[4], T*) {
    return {{pack_pair<T>(low[0], low[1]), pack_pair<T>(low[2], low[3]), pack_pair<T>(high[0], high[1]),
             pack_pair<T>(high[2], high[3])}};
  }
  template <bool b_by_rows, int tiles>
  __device__ void multiply(Sums<tiles>& sums, const T* b, int stride, int used = tiles) const {
    Warp<level, T>::template multiply_left<b_by_rows, tiles>(sums, part, b, stride, used);
  }
};

// In float32: in shared memory.
template <Level level>
struct Left<level, float> {
  static constexpr int scratch_stride = padded<float>(16);
  const float* tile;
  int stride;

  __device__ static Left from_shared(const float* tile, int stride) { return {tile, stride}; }
  __device__ static Left from_sums(const float (&low)[4], const float (&high)[4], float* scratch) {
    __syncwarp();  // the warp has read what was there
    for_each_of_tile(0, [&](int row, int column, int i) { scratch[row * scratch_stride + column] = low[i]; });
    for_each_of_tile(1, [&](int row, int column, int i) { scratch[row * scratch_stride + column] = high[i]; });
    __syncwarp();
    return {scratch, scratch_stride};
  }
  template <bool b_by_rows, int tiles>
  __device__ void multiply(Sums<tiles>& sums, const float* b, int b_stride, int used = tiles) const {
    Warp<level, float>::template multiply<b_by_rows, tiles>(sums, tile, stride, b, b_stride, used);
  }
};

template <Level level, class T, int width>
struct QueryRows {
  static constexpr int slices = width / 16, tiles = key_chunk<T, width> / 8, stride = padded<T>(width);

  Left<level, T> query[slices];
  Sums<width / 8> out;
  float top[2], total[2];  // of rows g and g + 8; `total` of this lane's keys alone

  __device__ void begin() {
#pragma unroll
    for (int n = 0; n < width / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] = 0.f;
#pragma unroll
    for (int r = 0; r < 2; ++r) top[r] = -INFINITY, total[r] = 0.f;
  }

  __device__ void load(const T* tile) {
#pragma unroll
    for (int s = 0; s < slices; ++s) query[s] = Left<level, T>::from_shared(tile + 16 * s, stride);
  }

  // Adds keys and values 0 .. live - 1 of two tiles with this `stride`, zeros or finite numbers behind them up to a
  // multiple of 16. `scratch`: left_scratch numbers of this warp.
  __device__ void add_keys(const T* k, const T* v, int live, float factor, T* scratch) {
    Sums<tiles> scores = {};
    const int used = 2 * ceil_div(live, 16);
#pragma unroll
    for (int s = 0; s < slices; ++s) query[s].template multiply<false, tiles>(scores, k + 16 * s, stride, used);
    weigh(scores, used, live, factor);
#pragma unroll
    for (int n = 0; n < tiles; n += 2) {
      if (n >= used) break;
      const auto weights = Left<level, T>::from_sums(scores[n], scores[n + 1], scratch);
      weights.template multiply<true, width / 8>(out, v + 8 * n * stride, stride);
    }
  }

  // Divides by the sums and writes `rows` rows (at most 16) and `columns` columns.
  __device__ void end(T* dst, int64_t dst_stride, int rows, int columns) {
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
      total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
      inverse[r] = 1.f / total[r];
    }
    const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
    const bool pairs = reinterpret_cast<uintptr_t>(dst) % (2 * sizeof(T)) == 0 && dst_stride % 2 == 0;
#pragma unroll
    for (int n = 0; n < width / 8; ++n) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = g + 8 * r, column = 8 * n + 2 * t;
        T* to = dst + row * dst_stride + column;
        if (row >= rows || column >= columns) continue;
        if (column + 1 < columns) {
          store_pair(to, inverse[r] * out[n][2 * r], inverse[r] * out[n][2 * r + 1], pairs);
        } else {
          *to = from_float<T>(inverse[r] * out[n][2 * r]);
        }
      }
    }
  }

 private:
  // From scores to weights 2^(factor score - top), 0 beyond `live`.
  __device__ void weigh(Sums<tiles>& scores, int used, int live, float factor) {
    float peak[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      if (n >= used) break;
      for_each_of_tile(n, [&](int, int column, int i) {
        scores[n][i] = column < live ? factor * scores[n][i] : -INFINITY;
        peak[i / 2] = fmaxf(peak[i / 2], scores[n][i]);
      });
    }
    raise(peak);
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      if (n >= used) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = exp2_fast(scores[n][i] - top[i / 2]);
        total[i / 2] += scores[n][i];
      }
    }
  }

  __device__ void raise(float (&peak)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      peak[r] = fmaxf(peak[r], __shfl_xor_sync(0xffffffffu, peak[r], 1));
      peak[r] = fmaxf(peak[r], __shfl_xor_sync(0xffffffffu, peak[r], 2));
      const float shrink = exp2_fast(top[r] - peak[r]);
      top[r] = peak[r];
      total[r] *= shrink;
#pragma unroll
      for (int n = 0; n < width / 8; ++n) out[n][2 * r] *= shrink, out[n][2 * r + 1] *= shrink;
    }
  }
};

// Zeros in place of a head that an image does not keep; all threads of the block together.
template <class T>
__device__ void clear_rows(T* dst, int64_t stride, int rows, int columns) {
  for (int i = threadIdx.x; i < rows * columns; i += blockDim.x)
    dst[i / columns * stride + i % columns] = from_float<T>(0.f);
}

}  // namespace vitsparse::cuda
