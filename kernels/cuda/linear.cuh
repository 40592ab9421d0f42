// dst = activation(src W^T + bias) (+ dst): one tile of dst per task, by the 256 threads of a block.
//
//   linear_task_of<level, T, half_sums, Shape>(params, task)   all 256 threads, task < linear_tasks; ends synchronised
//   linear_tasks(params, tile)                                 tasks of a product
//   linear_shared<level, T>(params, tile)                      bytes of shared memory they use, from the beginning
//
// The rows of all images are one list. A slice of the inputs of both factors lies in shared memory in rows of 64 bytes,
// one table of such rows per warp along k, and each warp multiplies 32 columns of its own table. Slices go round in a ring:
// from sm80 on cp.async fills two slices ahead; on sm75 a thread holds the next slice in registers while it multiplies.
// The small tile is for a single image, where latency rules: eight warps share 256 inputs, so that most products are one
// slice or four.
// Rows and columns beyond the end repeat the last one and are not written; inputs beyond the end are zero.
// Sums are float; with half_sums those of 32 inputs add up in float16 first.
#pragma once
#include <cstring>
#include <type_traits>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/tile.cuh"

namespace vitsparse::cuda {

// loaded_rows 0: the rows of src are not in the slices (norm_linear.cuh).
template <int rows_, int columns_, int warps_m_, int warps_n_, int warps_k_, int loaded_rows_ = rows_>
struct LinearShape {
  static constexpr int rows = rows_, columns = columns_, warps_m = warps_m_, warps_n = warps_n_, warps_k = warps_k_;
  static constexpr int strips = rows / warps_m / 16, strip_rows = 16, strip_columns = 0;  // of a warp: 16 x 32, one below the other
  static constexpr int loaded_rows = loaded_rows_, row_bytes = 64;
  static constexpr int table = (loaded_rows + columns) * row_bytes;  // rows of src, then rows of the weight
  static constexpr int stage = table * warps_k;
  static_assert(columns == 32 * warps_n && warps_m * warps_n * warps_k == 8);

  // Where 16 bytes of a row lie, such that the eight rows that load_matrices() reads at once lie in different banks.
  __device__ __forceinline__ static int place(int row, int chunk) { return row * 64 + 16 * (chunk ^ (row / 2 % 4)); }
};
using LargeLinear = LinearShape<128, 128, 2, 4, 1>;
using MediumLinear = LinearShape<64, 64, 2, 2, 2>;
using SmallLinear = LinearShape<16, 32, 1, 1, 8>;

template <Level level>
constexpr int linear_stages = level == Level::sm75 ? 2 : 3;

constexpr int linear_strip = 40;  // floats from row to row of a warp's 16 x 32 results in shared memory
constexpr int linear_strips = 8 * 16 * linear_strip * static_cast<int>(sizeof(float));

struct LinearSize { int rows, columns, warps_k; };
__host__ __device__ inline LinearSize linear_size(LinearTile tile) {
  switch (tile) {
    case LinearTile::large: return {LargeLinear::rows, LargeLinear::columns, LargeLinear::warps_k};
    case LinearTile::medium: return {MediumLinear::rows, MediumLinear::columns, MediumLinear::warps_k};
    default: return {SmallLinear::rows, SmallLinear::columns, SmallLinear::warps_k};
  }
}

__host__ __device__ inline int linear_tasks(const LinearParams& params, LinearTile tile) {
  const LinearSize size = linear_size(tile);
  return ceil_div(params.batch * params.rows, size.rows) * ceil_div(params.outputs, size.columns);
}

template <Level level, class T>
__host__ __device__ int linear_shared(const LinearParams& params, LinearTile tile) {
  const LinearSize size = linear_size(tile);
  const int slices = ceil_div(params.inputs * static_cast<int>(sizeof(T)), 64 * size.warps_k);
  const int stages = slices < linear_stages<level> ? slices : linear_stages<level>;
  const int ring = stages * (size.rows + size.columns) * 64 * size.warps_k;
  return ring > linear_strips ? ring : linear_strips;
}

template <int bytes>
__device__ __forceinline__ bool aligned_to(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Row `row` of the list, or the last one.
template <class T>
__device__ __forceinline__ const T* linear_src(const LinearParams& params, int row) {
  const int last = params.batch * params.rows - 1, r = row < last ? row : last, image = r / params.rows;
  return static_cast<const T*>(params.src.data) + image * params.src.image_stride +
         (r - image * params.rows) * params.src.row_stride;
}
template <class T>
__device__ __forceinline__ const T* linear_weight(const LinearParams& params, int row) {
  return static_cast<const T*>(params.weight) + (row < params.outputs ? row : params.outputs - 1) * params.weight_stride;
}

// What one thread copies of each slice: 16 bytes of one row in each of `passes` passes over the rows of both factors.
template <Level level, class T, class Shape>
struct LinearLoader {
  static constexpr int vector = per_16_bytes<T>, of_row = Shape::row_bytes / 16;  // numbers of a chunk, chunks of a row
  static constexpr int chunks = of_row * Shape::warps_k, rows_a_pass = 256 / chunks;
  static constexpr int passes = (Shape::loaded_rows + Shape::columns) / rows_a_pass;
  static_assert(Shape::loaded_rows % rows_a_pass == 0 && rows_a_pass % 8 == 0);

  const LinearParams& params;
  const int row0, column0;
  const T* from[passes];  // this thread's part of the next slice
  int numbers;            // left in the rows from there on
  bool aligned, holds;
  uint4 held[level == Level::sm75 ? passes : 1] = {};  // else alive from task to task

  __device__ __forceinline__ LinearLoader(const LinearParams& params, int row0, int column0)
      : params(params), row0(row0), column0(column0), numbers(params.inputs - chunk() * vector), aligned(true) {
#pragma unroll
    for (int i = 0; i < passes; ++i) {
      from[i] = row(first() + i * rows_a_pass) + chunk() * vector;
      aligned = aligned && aligned_to<16>(from[i]);
    }
  }

  // Begins to copy the next slice; on sm75 finish() puts it where it belongs. `stage` is free, and null after the last.
  __device__ __forceinline__ void begin(unsigned char* stage) {
    holds = false;
    if (stage != nullptr) {
      if (level == Level::sm75 && aligned && numbers >= vector) {
        holds = true;
#pragma unroll
        for (int i = 0; i < passes; ++i) held[level == Level::sm75 ? i : 0] = *reinterpret_cast<const uint4*>(from[i]);
      } else if (level != Level::sm75 && aligned) {
        const int left = numbers * static_cast<int>(sizeof(T)), bytes = left < 0 ? 0 : left > 16 ? 16 : left;
#pragma unroll
        for (int i = 0; i < passes; ++i) copy_16<level>(place(stage, i), from[i], bytes);
      } else {
        copy_numbers(stage);
      }
#pragma unroll
      for (int i = 0; i < passes; ++i) from[i] += chunks * vector;
      numbers -= chunks * vector;
    }
    commit_copies<level>();
  }
  __device__ __forceinline__ void finish(unsigned char* stage) {
    if constexpr (level == Level::sm75) {
      if (!holds) return;
#pragma unroll
      for (int i = 0; i < passes; ++i) *reinterpret_cast<uint4*>(place(stage, i)) = held[i];
    }
  }

 private:
  __device__ static int chunk() { return threadIdx.x % chunks; }
  __device__ static int first() { return threadIdx.x / chunks; }
  __device__ static unsigned char* place(unsigned char* stage, int pass) {
    return stage + chunk() / of_row * Shape::table + Shape::place(first(), chunk() % of_row) +
           pass * rows_a_pass * Shape::row_bytes;
  }
  __device__ __forceinline__ const T* row(int r) const {
    return r < Shape::loaded_rows ? linear_src<T>(params, row0 + r)
                                  : linear_weight<T>(params, column0 + r - Shape::loaded_rows);
  }
  // One by one, for what is unaligned or ends within 16 bytes. Finds the rows anew, which costs no registers.
  __device__ __forceinline__ void copy_numbers(unsigned char* stage) {
#pragma unroll 1
    for (int i = 0; i < passes; ++i) {
      const T* numbers_of_row = row(first() + i * rows_a_pass) + params.inputs - numbers;
      T* to = reinterpret_cast<T*>(place(stage, i));
#pragma unroll
      for (int j = 0; j < vector; ++j) to[j] = j < numbers ? numbers_of_row[j] : from_float<T>(0.f);
    }
  }
};

// sums[16 * m_tiles x 32] += rows of a times rows of b, each of 64 bytes. a(row, chunk) -> where 16 bytes of a row lie.
template <Level level, class T, bool half_sums, int m_tiles>
struct LinearProduct {
  template <class A>
  __device__ __forceinline__ static void add(float (&sums)[m_tiles][4][4], A a, const unsigned char* b) {
    uint32_t left[4], right[2][2][4];  // 16 inputs each, 16 columns each
    if constexpr (half_sums) {
      load_right(right[0], b, 0);
      load_right(right[1], b, 1);
#pragma unroll
      for (int m = 0; m < m_tiles; ++m) {
        uint32_t part[4][2] = {};
        load_left(left, a, m, 0);
        multiply(part, left, right[0]);
        load_left(left, a, m, 1);
        multiply(part, left, right[1]);
        add_halves(sums[m], part);
      }
    } else {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        load_right(right[0], b, k);
#pragma unroll
        for (int m = 0; m < m_tiles; ++m) {
          load_left(left, a, m, k);
          multiply(sums[m], left, right[0]);
        }
      }
    }
  }

 private:
  template <class A>
  __device__ __forceinline__ static void load_left(uint32_t (&left)[4], A a, int m, int k) {
    const int lane = threadIdx.x % 32;
    load_matrices(left, a(m * 16 + lane % 16, 2 * k + lane / 16));
  }
  __device__ __forceinline__ static void load_right(uint32_t (&right)[2][4], const unsigned char* b, int k) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < 2; ++n)
      load_matrices(right[n], b + n * 16 * 64 + LargeLinear::place(lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
  }
  template <class Sum>
  __device__ __forceinline__ static void multiply(Sum (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2][4]) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint32_t column[2] = {right[n / 2][n % 2 * 2], right[n / 2][n % 2 * 2 + 1]};
      TensorCore<level, T>::mma(sums[n], left, column);
    }
  }
  __device__ __forceinline__ static void add_halves(float (&sums)[4][4], const uint32_t (&part)[4][2]) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        __half number[2];
        memcpy(number, &part[n][i / 2], 4);
        sums[n][i] += to_float(number[i % 2]);
      }
    }
  }
};

// float32: the same sums in the same places, one multiply-add after the other.
template <Level level, bool half_sums, int m_tiles>
struct LinearProduct<level, float, half_sums, m_tiles> {
  template <class A>
  __device__ static void add(float (&sums)[m_tiles][4][4], A a, const unsigned char* b) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    for (int k = 0; k < 16; ++k) {
      float column[4][2];
#pragma unroll
      for (int i = 0; i < 8; ++i) column[i / 2][i % 2] = number(b + LargeLinear::place(8 * (i / 2) + 2 * t + i % 2, k / 4), k);
#pragma unroll
      for (int i = 0; i < 2 * m_tiles; ++i) {
        const float left = number(a(8 * i + g, k / 4), k);
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i / 2][j / 2][i % 2 * 2 + j % 2] += left * column[j / 2][j % 2];
      }
    }
  }

 private:
  __device__ __forceinline__ static float number(const unsigned char* chunk, int k) {
    return reinterpret_cast<const float*>(chunk)[k % 4];
  }
};

// values += the `count` numbers at `from`.
template <class T, int n>
__device__ __forceinline__ void add_numbers(float (&values)[n], const T* from, int count) {
  T read[n];
  if (count == n && aligned_to<n * sizeof(T)>(from)) {
    struct alignas(n * sizeof(T)) Vector { T number[n]; };
    const Vector vector = *reinterpret_cast<const Vector*>(from);
#pragma unroll
    for (int i = 0; i < n; ++i) read[i] = vector.number[i];
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) read[i] = i < count ? from[i] : from_float<T>(0.f);
  }
#pragma unroll
  for (int i = 0; i < n; ++i) values[i] += to_float(read[i]);
}

template <class T, int n>
__device__ __forceinline__ void store_numbers(const float (&values)[n], T* to, int count) {
  if (count == n && aligned_to<n * sizeof(T)>(to)) {
    struct alignas(n * sizeof(T)) Vector { T number[n]; } vector;
#pragma unroll
    for (int i = 0; i < n; ++i) vector.number[i] = from_float<T>(values[i]);
    *reinterpret_cast<Vector*>(to) = vector;
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (i < count) to[i] = from_float<T>(values[i]);
    }
  }
}

// The epilogue of n neighbours in a row of the list.
template <class T, int n>
__device__ __forceinline__ void write_numbers(const LinearParams& params, int row, int column, float (&values)[n]) {
  if (row >= params.batch * params.rows || column >= params.outputs) return;
  const int image = row / params.rows, r = row - image * params.rows;
  const int count = params.outputs - column < n ? params.outputs - column : n;
  T* to = static_cast<T*>(params.dst.data) + image * params.dst.image_stride + r * params.dst.row_stride + column;
  if (params.bias != nullptr)
    add_numbers(values, static_cast<const T*>(params.bias) + r * params.bias_stride + column, count);
  if (params.gelu) {
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] = gelu(values[i]);
  }
  if (params.accumulate) add_numbers(values, static_cast<const T*>(to), count);
  store_numbers(values, to, count);
}

// Each warp puts a strip of its sums into shared memory; the warps along k add up, and finish, some of its rows each.
template <class T, class Shape>
__device__ __forceinline__ void write_sums(const LinearParams& params, float (&sums)[Shape::strips][4][4], int row0,
                                           int column0) {
  constexpr int groups = Shape::warps_m * Shape::warps_n, own = 16 / Shape::warps_k;  // own: rows, and numbers of a lane
  constexpr int n = own < per_16_bytes<T> ? own : per_16_bytes<T>, lanes = 32 / n;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp % groups, warp_k = warp / groups;
  float* strips = reinterpret_cast<float*>(shared_memory());
  const auto strip = [&](int of, int row) { return strips + (of * 16 + row) * linear_strip; };
#pragma unroll 1
  for (int m = 0; m < Shape::strips; ++m) {  // once in the code: the strips that come next move to the front
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      for_each_of_tile(i, [&](int row, int column, int j) { strip(warp, row)[column] = sums[0][i][j]; });
#pragma unroll
      for (int next = 1; next < Shape::strips; ++next) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[next - 1][i][j] = sums[next][i][j];
      }
    }
    if constexpr (Shape::warps_k > 1) __syncthreads(); else __syncwarp();
#pragma unroll 1
    for (int i = lane; i < own * lanes; i += 32) {
      const int row = warp_k * own + i / lanes, column = i % lanes * n;
      float values[n] = {};
#pragma unroll
      for (int k = 0; k < Shape::warps_k; ++k) {
#pragma unroll
        for (int j = 0; j < n; ++j) values[j] += strip(group + k * groups, row)[column + j];
      }
      write_numbers<T>(params, row0 + group / Shape::warps_n * (Shape::rows / Shape::warps_m) + m * Shape::strip_rows + row,
                       column0 + group % Shape::warps_n * 32 + m * Shape::strip_columns + column, values);
    }
    if constexpr (Shape::warps_k > 1) __syncthreads(); else __syncwarp();
  }
}

// The tile of dst from row0 and column0 on. meanwhile() runs while the first slices are on their way; a(s, slice) -> what
// LinearProduct takes as a of slice s, which lies at `slice`.
template <Level level, class T, bool half_sums, class Shape, class Meanwhile, class A>
__device__ __forceinline__ void linear_tile_of(const LinearParams& params, int row0, int column0, Meanwhile meanwhile, A a) {
  constexpr int stages = linear_stages<level>, groups = Shape::warps_m * Shape::warps_n;
  const int slices = ceil_div(params.inputs * static_cast<int>(sizeof(T)), Shape::row_bytes * Shape::warps_k);
  const int warp = threadIdx.x / 32, group = warp % groups;
  const int b = warp / groups * Shape::table + (Shape::loaded_rows + group % Shape::warps_n * 32) * Shape::row_bytes;
  unsigned char* ring = shared_memory();

  float sums[Shape::strips][4][4] = {};
  LinearLoader<level, T, Shape> loader(params, row0, column0);
#pragma unroll
  for (int s = 0; s < stages - 1; ++s) loader.begin(s < slices ? ring + s * Shape::stage : nullptr);
  meanwhile();
  loader.finish(ring);  // on sm75 only one has begun
  for (int s = 0; s < slices; ++s) {
    wait_copies<level, stages - 2>();
    __syncthreads();  // slice s has arrived, and all are done with the one before
    const int next = s + stages - 1;
    unsigned char* stage = next < slices ? ring + next % stages * Shape::stage : nullptr;
    loader.begin(stage);
    const unsigned char* slice = ring + s % stages * Shape::stage;
    LinearProduct<level, T, half_sums, Shape::strips>::add(sums, a(s, slice), slice + b);
    loader.finish(stage);
  }
  wait_copies<level, 0>();
  __syncthreads();
  write_sums<T, Shape>(params, sums, row0, column0);
  __syncthreads();
}

template <Level level, class T, bool half_sums, class Shape>
__device__ __forceinline__ void linear_task_of(const LinearParams& params, int task) {
  const int across = ceil_div(params.outputs, Shape::columns), warp = threadIdx.x / 32;
  const int strip = warp % (Shape::warps_m * Shape::warps_n) / Shape::warps_n * (Shape::rows / Shape::warps_m);
  const int first = warp / (Shape::warps_m * Shape::warps_n) * Shape::table + strip * Shape::row_bytes;
  linear_tile_of<level, T, half_sums, Shape>(
      params, task / across * Shape::rows, task % across * Shape::columns, [] {},
      [=](int, const unsigned char* slice) {
        return [=](int row, int chunk) { return slice + first + Shape::place(row, chunk); };
      });
}

// Two blocks on a multiprocessor, so that one multiplies while the other writes; where 128 registers are too few, one.
template <Level level, bool half_sums, class Shape>
constexpr int linear_blocks = level == Level::sm75 && half_sums && Shape::strips == 4 ? 1 : 2;

template <Level level, class T, bool half_sums, class Shape>
__global__ void __launch_bounds__(256, linear_blocks<level, half_sums, Shape>) linear_kernel(LinearParams params) {
  linear_task_of<level, T, half_sums, Shape>(params, blockIdx.x);
}

}  // namespace vitsparse::cuda
