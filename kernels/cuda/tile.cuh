// Tiles in shared memory: how a block fills them, and how a warp multiplies them.
//
// A tile is row-major; `stride` numbers from row to row. With stride = padded<T>(columns), columns a multiple of 64, the
// eight rows that load_matrices() reads at once lie in different banks. Tiles begin at multiples of 16 bytes.
#pragma once
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/ptx.cuh"

namespace vitsparse::cuda {

template <class T>
__host__ __device__ constexpr int padded(int columns) { return columns + per_16_bytes<T>; }

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

// All threads of the block together: tile[r][c] = row(r)[c] for r < rows, c < columns (a multiple of per_16_bytes), with
// zeros where row(r) is null and from `valid` columns on. `aligned`: each row(r) is a multiple of 16 bytes, so that copies
// are asynchronous from sm80 on (then commit_copies, wait_copies); else numbers are copied one by one, at once.
template <Level level, class T, class Row>
__device__ __forceinline__ void load_tile(T* tile, int stride, int rows, int columns, int valid, bool aligned, Row row) {
  constexpr int vector = per_16_bytes<T>, together = level == Level::sm75 ? 4 : 1;
  const int vectors = columns / vector, count = rows * vectors;
  for (int first = threadIdx.x; first < count; first += together * blockDim.x) {
    uint4 held[together];  // on sm75 a thread waits for memory once for all of these
#pragma unroll
    for (int pass = level == Level::sm75 ? 0 : 1; pass < 2; ++pass) {
#pragma unroll
      for (int j = 0; j < together; ++j) {
        const int i = first + j * blockDim.x, r = i / vectors, c = i % vectors * vector;
        if (i >= count) break;
        const T* from = row(r);
        T* to = tile + r * stride + c;
        const int numbers = from == nullptr || c >= valid ? 0 : valid - c < vector ? valid - c : vector;
        if (level == Level::sm75 && aligned && numbers == vector) {
          if (pass == 0) held[j] = *reinterpret_cast<const uint4*>(from + c);
          else *reinterpret_cast<uint4*>(to) = held[j];
        } else if (pass == 0) {
          continue;
        } else if (numbers == 0) {
          *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
        } else if (aligned) {
          copy_16<level>(to, from + c, numbers * static_cast<int>(sizeof(T)));
        } else {
          for (int i = 0; i < vector; ++i) to[i] = i < numbers ? from[c + i] : from_float<T>(0.f);
        }
      }
    }
  }
}

// The sums of a warp: tiles * 8 columns of 16 rows, one [16 x 8] tile in each element (see TensorCore).
template <int tiles>
using Sums = float[tiles][4];

// Calls body(row, column, i) for the four numbers of tile n that this lane holds.
template <class Body>
__device__ __forceinline__ void for_each_of_tile(int n, Body body) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) body(g + 8 * (i / 2), 8 * n + 2 * t + i % 2, i);
}

// Products of one warp in slices of 16 of k. `a`: [16][>= 16] in shared memory; `b`: the other factor, transposed
// ([columns][k], as weights lie in memory) or, with `b_by_rows`, as it is ([k][columns]). `tiles` is even.
template <Level level, class T>
struct Warp {
  template <bool b_by_rows, int tiles>
  __device__ static void multiply(Sums<tiles>& sums, const T* a, int a_stride, const T* b, int b_stride, int used = tiles) {
    uint32_t left[4];
    load_left(left, a, a_stride);
    multiply_left<b_by_rows, tiles>(sums, left, b, b_stride, used);
  }

  // The fragment of a 16 x 16 tile.
  __device__ static void load_left(uint32_t (&left)[4], const T* a, int stride) {
    const int lane = threadIdx.x % 32;
    load_matrices(left, a + (lane % 16) * stride + 8 * (lane / 16));
  }

  // The same with `a` in registers. Only the first `used` tiles (even) are computed.
  template <bool b_by_rows, int tiles>
  __device__ static void multiply_left(Sums<tiles>& sums, const uint32_t (&left)[4], const T* b, int b_stride,
                                       int used = tiles) {
    static_assert(tiles % 2 == 0);
    const int lane = threadIdx.x % 32, low = lane % 8, mid = lane / 8 % 2, high = lane / 16;
#pragma unroll
    for (int n = 0; n < tiles; n += 2) {
      if (n >= used) break;
      uint32_t right[4];
      if constexpr (b_by_rows) {
        load_matrices_transposed(right, b + (low + 8 * mid) * b_stride + 8 * (n + high));
      } else {
        load_matrices(right, b + (8 * (n + high) + low) * b_stride + 8 * mid);
      }
      const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
      TensorCore<level, T>::mma(sums[n], left, first);
      TensorCore<level, T>::mma(sums[n + 1], left, second);
    }
  }
};

// float32, for checking: the same sums in the same places, one multiply-add after the other.
template <Level level>
struct Warp<level, float> {
  template <bool b_by_rows, int tiles>
  __device__ static void multiply(Sums<tiles>& sums, const float* a, int a_stride, const float* b, int b_stride,
                                  int used = tiles) {
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      if (n >= used) break;
      for_each_of_tile(n, [&](int row, int column, int i) {
        for (int k = 0; k < 16; ++k)
          sums[n][i] += a[row * a_stride + k] * (b_by_rows ? b[k * b_stride + column] : b[column * b_stride + k]);
      });
    }
  }
};

}  // namespace vitsparse::cuda
