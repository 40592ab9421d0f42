// The fused MLP: one tile of rows, and one slice of the hidden units, per task, by the 256 threads of a block.
//
//   mlp_task<level, T, half_sums, Shape>(params, source, task)  task < mlp_tasks(params, tile); all 256 threads; ends synchronised
//     source(i) -> View of source i: first those that are added, then those that are taken away
//   mlp_tasks(params, tile)                                     tasks of an MLP
//   mlp_shared<level, T>(params, tile)                          bytes of shared memory that its tasks use, from the beginning
//   mlp_outputs(tile)                                           most outputs of a tile
//
//   1. Each warp makes the sum and norm of its rows (sum_norm.cuh), straight into shared memory.
//   2. For each chunk of hidden units: normed rows times W1, + b1, GELU, into shared memory; times W2, added to the
//      results, which stay in registers from the first chunk to the last.
//   3. + b2, to memory.
// Both weights come through one ring of stages in shared memory, [columns of a tile][128 bytes of k]: from sm80 on cp.async
// fills two stages ahead; on sm75 a thread holds the next stage in registers while it multiplies. The first are under way
// while the rows are gathered. The rows of all images are one list. Sums are float; with half_sums those of one stage
// add up in float16 first.
#pragma once
#include <cstring>

#include "kernels/cuda/mlp.h"
#include "kernels/cuda/sum_norm.cuh"
#include "kernels/cuda/tile.cuh"

namespace vitsparse::cuda {

constexpr int mlp_parts = 4;  // of `columns` outputs each: what fits in registers

template <int rows_, int warps_m_>
struct MlpShape {
  static constexpr int rows = rows_, warps_m = warps_m_, warps_n = 8 / warps_m;
  static constexpr int columns = 16 * warps_n;           // of each product at a time, and hidden units in a chunk
  static constexpr int m_tiles = rows / warps_m / 16;    // of 16 rows in one warp, which has 16 columns
};
using LargeMlp = MlpShape<64, 2>;
using MediumMlp = MlpShape<32, 1>;
using SmallMlp = MlpShape<16, 1>;

template <Level level>
constexpr int mlp_stages = level == Level::sm75 ? 2 : 3;
template <class T>
constexpr int mlp_depth = 128 / static_cast<int>(sizeof(T));  // numbers of k in a stage

struct MlpSize { int rows, columns; };
__host__ __device__ inline MlpSize mlp_size(MlpTile tile) {
  switch (tile) {
    case MlpTile::large: return {LargeMlp::rows, LargeMlp::columns};
    case MlpTile::medium: return {MediumMlp::rows, MediumMlp::columns};
    default: return {SmallMlp::rows, SmallMlp::columns};
  }
}
__host__ __device__ inline int mlp_outputs(MlpTile tile) { return mlp_parts * mlp_size(tile).columns; }
__host__ __device__ inline int mlp_tasks(const MlpParams& params, MlpTile tile) {
  return ceil_div(params.input.batch * params.input.rows, mlp_size(tile).rows) * params.slices;
}

template <class T>
__host__ __device__ constexpr int mlp_normed_stride(int width) { return padded<T>(round_up(width, mlp_depth<T>)); }

template <Level level, class T>
__host__ __device__ int mlp_shared(const MlpParams& params, MlpTile tile) {
  const MlpSize size = mlp_size(tile);
  const int numbers = mlp_normed_stride<T>(params.input.width) + padded<T>(size.columns);
  return mlp_stages<level> * size.columns * 128 + size.rows * numbers * static_cast<int>(sizeof(T));
}

// Part of a weight: [columns of a tile][mlp_depth], of which `rows` rows and `numbers` columns exist.
template <class T>
struct MlpStage {
  const T* weight;  // null: nothing
  int64_t stride;
  int rows, numbers;
  bool vectors;  // whether all of it can be read by 16 bytes
};

// What goes through the ring, in the order of use: for each chunk W1 along k, then W2 by outputs and along k.
template <class T, int columns>
struct MlpOrder {
  static constexpr int deep = columns / mlp_depth<T>;  // stages along a chunk
  const MlpParams& params;
  int begin, end, chunk;  // hidden units of the slice, and the next ones
  int step, across, in_all;  // stages of a chunk, of which `across` are of W1
  bool aligned1, aligned2;

  __device__ MlpOrder(const MlpParams& of, int slice) : params(of), step(0) {
    const int share = round_up(ceil_div(of.hidden, of.slices), columns);
    chunk = begin = slice * share;
    end = begin + share < of.hidden ? begin + share : of.hidden;
    across = ceil_div(of.input.width, mlp_depth<T>);
    in_all = across + ceil_div(of.outputs, columns) * deep;
    aligned1 = is_aligned(of.weight1) && of.weight1_stride % per_16_bytes<T> == 0;
    aligned2 = is_aligned(of.weight2) && of.weight2_stride % per_16_bytes<T> == 0;
  }

  __device__ __forceinline__ MlpStage<T> next() {
    if (chunk >= end) return {};
    const int column = step < across ? chunk : (step - across) / deep * columns;
    const int k = step < across ? step * mlp_depth<T> : chunk + (step - across) % deep * mlp_depth<T>;
    MlpStage<T> stage;
    if (step < across) {
      stage = {static_cast<const T*>(params.weight1), params.weight1_stride, end - column, params.input.width - k, aligned1};
    } else {
      stage = {static_cast<const T*>(params.weight2), params.weight2_stride, params.outputs - column, end - k, aligned2};
    }
    stage.weight += column * stage.stride + k;
    stage.vectors = stage.vectors && (stage.numbers >= mlp_depth<T> || stage.numbers % per_16_bytes<T> == 0);
    if (++step == in_all) {
      step = 0;
      chunk += columns;
    }
    return stage;
  }
};

// Where 16 bytes of a row of 128 lie, such that the eight rows that load_matrices() reads at once lie in different banks.
__device__ __forceinline__ int mlp_place(int row, int chunk) { return row * 128 + 16 * (chunk ^ (row % 8)); }

template <Level level, class T, int columns>
struct MlpRing {
  static constexpr int stages = mlp_stages<level>, bytes = columns * 128, passes = columns / 32;

  MlpOrder<T, columns> order;
  uint4 held[level == Level::sm75 ? passes : 1];
  int place, taken;  // in bytes from the beginning of shared memory
  bool holds;

  __device__ MlpRing(const MlpParams& params, int slice)
      : order(params, slice), place(mlp_place(threadIdx.x / 8, threadIdx.x % 8)), taken(0), holds(false) {
#pragma unroll
    for (int i = 0; i < stages - 1; ++i) begin(shared_memory() + i * bytes);
  }

  // The next stage, when all threads have come: after this call, none reads the one before it.
  __device__ __forceinline__ const unsigned char* next() {
    unsigned char* stage = shared_memory() + taken;
    if (holds) {
#pragma unroll
      for (int i = 0; i < passes; ++i)
        *reinterpret_cast<uint4*>(stage + place + i * 32 * 128) = held[level == Level::sm75 ? i : 0];
    }
    wait_copies<level, stages - 2>();
    __syncthreads();
    begin(shared_memory() + (taken == 0 ? stages - 1 : taken / bytes - 1) * bytes);
    taken = taken + bytes == stages * bytes ? 0 : taken + bytes;
    return stage;
  }

 private:
  __device__ __forceinline__ void begin(unsigned char* to) {
    const MlpStage<T> stage = order.next();
    holds = level == Level::sm75 && stage.weight != nullptr && stage.vectors;
    if (stage.weight != nullptr) {
      if (stage.vectors) begin_vectors(stage, to); else copy_numbers(stage, to);
    }
    commit_copies<level>();
  }
  __device__ __forceinline__ void begin_vectors(const MlpStage<T>& stage, unsigned char* to) {
    const int row = threadIdx.x / 8, k = threadIdx.x % 8 * per_16_bytes<T>;
    const T* from = stage.weight + row * stage.stride + k;
#pragma unroll
    for (int i = 0; i < passes; ++i) {
      const bool inside = row + 32 * i < stage.rows && k < stage.numbers;
      if constexpr (level == Level::sm75) {
        held[i] = inside ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
      } else {
        copy_16<level>(to + place + i * 32 * 128, inside ? from : stage.weight, inside ? 16 : 0);
      }
      from += 32 * stage.stride;
    }
  }
  __device__ __forceinline__ static void copy_numbers(const MlpStage<T>& stage, unsigned char* to) {
#pragma unroll 1
    for (int i = threadIdx.x; i < columns * mlp_depth<T>; i += 256) {
      const int row = i / mlp_depth<T>, k = i % mlp_depth<T>, in_vector = k % per_16_bytes<T>;
      const bool inside = row < stage.rows && k < stage.numbers;
      reinterpret_cast<T*>(to + mlp_place(row, k / per_16_bytes<T>))[in_vector] =
          inside ? stage.weight[row * stage.stride + k] : from_float<T>(0.f);
    }
  }
};

// Products along one stage of k: load() takes 16 * m_tiles rows into registers, and add() does sums[16 * m_tiles x 16] +=
// these times the 16 rows of b from `column` on.
template <Level level, class T, bool half_sums, int m_tiles>
struct MlpProduct {
  static constexpr int steps = mlp_depth<T> / 16;
  using Left = uint32_t[steps][m_tiles][4];

  __device__ __forceinline__ static void load(Left& left, const T* a, int a_stride) {
#pragma unroll
    for (int i = 0; i < steps * m_tiles; ++i)
      Warp<level, T>::load_left(left[i / m_tiles][i % m_tiles], a + i % m_tiles * 16 * a_stride + i / m_tiles * 16, a_stride);
  }

  __device__ __forceinline__ static void add(float (&sums)[m_tiles][2][4], const Left& left, const unsigned char* b,
                                             int column) {
    const int lane = threadIdx.x % 32, row = column + lane / 16 * 8 + lane % 8;
    uint32_t halves[m_tiles][2][2] = {};
#pragma unroll
    for (int k = 0; k < steps; ++k) {
      uint32_t right[4];
      load_matrices(right, b + mlp_place(row, 2 * k + lane / 8 % 2));
      const uint32_t columns[2][2] = {{right[0], right[1]}, {right[2], right[3]}};
#pragma unroll
      for (int i = 0; i < 2 * m_tiles; ++i) {
        if constexpr (half_sums) TensorCore<level, T>::mma(halves[i / 2][i % 2], left[k][i / 2], columns[i % 2]);
        else TensorCore<level, T>::mma(sums[i / 2][i % 2], left[k][i / 2], columns[i % 2]);
      }
    }
    if constexpr (half_sums) add_halves(sums, halves);
  }

 private:
  __device__ __forceinline__ static void add_halves(float (&sums)[m_tiles][2][4], const uint32_t (&halves)[m_tiles][2][2]) {
#pragma unroll
    for (int i = 0; i < 4 * m_tiles; ++i) {
      T pair[2];
      memcpy(pair, &halves[i / 4][i / 2 % 2][i % 2], 4);
#pragma unroll
      for (int j = 0; j < 2; ++j) sums[i / 4][i / 2 % 2][i % 2 * 2 + j] += to_float(pair[j]);
    }
  }
};

// float32: the same sums in the same places, one multiply-add after the other.
template <Level level, bool half_sums, int m_tiles>
struct MlpProduct<level, float, half_sums, m_tiles> {
  struct Left {
    const float* rows;
    int stride;
  };
  __device__ static void load(Left& left, const float* a, int a_stride) { left = {a, a_stride}; }
  __device__ static void add(float (&sums)[m_tiles][2][4], const Left& left, const unsigned char* b, int column) {
    const auto weight = [=](int row, int k) { return reinterpret_cast<const float*>(b + mlp_place(row, k / 4))[k % 4]; };
#pragma unroll
    for (int i = 0; i < 2 * m_tiles; ++i) {
      for_each_of_tile(i % 2, [&](int row, int n, int j) {
        for (int k = 0; k < mlp_depth<float>; ++k)
          sums[i / 2][i % 2][j] += left.rows[(16 * (i / 2) + row) * left.stride + k] * weight(column + n, k);
      });
    }
  }
};

template <class T>
struct alignas(2 * sizeof(T)) MlpPair { T first, second; };

// A task: where its rows are and who computes what of them.
template <Level level, class T, bool half_sums, class Shape>
struct MlpBlock {
  static constexpr int columns = Shape::columns, m_tiles = Shape::m_tiles, hidden_stride = padded<T>(columns);
  using Product = MlpProduct<level, T, half_sums, m_tiles>;
  using WarpSums = float[m_tiles][2][4];

  const MlpParams& params;
  int first_row, slice, normed_stride;
  int row, column;     // of this warp in the products of the block
  T *normed, *hidden;  // [rows][normed_stride], [rows][hidden_stride]

  __device__ MlpBlock(const MlpParams& of, int task) : params(of) {
    const int warp = threadIdx.x / 32;
    first_row = task / of.slices * Shape::rows;
    slice = task % of.slices;
    normed_stride = mlp_normed_stride<T>(of.input.width);
    row = warp / Shape::warps_n * (Shape::rows / Shape::warps_m);
    column = warp % Shape::warps_n * 16;
    normed = reinterpret_cast<T*>(shared_memory() + mlp_stages<level> * columns * 128);
    hidden = normed + Shape::rows * normed_stride;
  }

  // Sum and norm of the rows, a warp for each; zeros beyond the last row and behind each.
  template <class Source>
  __device__ __forceinline__ void gather(Source source) const {
    const SumNormParams& input = params.input;
    const T* offsets = static_cast<const T*>(input.offset);
#pragma unroll 1
    for (int r = threadIdx.x / 32; r < Shape::rows; r += 8) {
      const int index = first_row + r, image = index / input.rows, in_image = index % input.rows;
      T* to = normed + r * normed_stride;
      const bool exists = image < input.batch;
      if (exists)
        sum_norm_row<T>(input.width, input.eps, input.count, input.minuses,
                        [&](int i) -> const T* { return row_of<const T>(source(i), image, in_image); },
                        offsets == nullptr ? nullptr : offsets + in_image * input.offset_stride,
                        slice == 0 ? row_or_null<T>(input.sum, image, in_image) : nullptr, to);
      const int end = round_up(input.width, mlp_depth<T>);
      for (int c = (exists ? input.width : 0) + threadIdx.x % 32; c < end; c += 32) to[c] = from_float<T>(0.f);
    }
  }

  // The hidden units of a chunk.
  __device__ __forceinline__ void expand(MlpRing<level, T, columns>& ring, int chunk) const {
    float bias[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) bias[i] = number_of(params.bias1, chunk + column + column_of(i / 2, i % 2), params.hidden);
    WarpSums sums = {};
#pragma unroll 1
    for (int k = 0; k < params.input.width; k += mlp_depth<T>) {
      const unsigned char* weight = ring.next();
      typename Product::Left left;
      Product::load(left, normed + row * normed_stride + k, normed_stride);
      Product::add(sums, left, weight, column);
    }
#pragma unroll
    for (int i = 0; i < 4 * m_tiles; ++i) {
      const int m = i / 4, n = i / 2 % 2, low = i % 2, r = row + 16 * m + 8 * low + threadIdx.x % 32 / 4;
      const MlpPair<T> pair = {from_float<T>(gelu(sums[m][n][2 * low] + bias[2 * n])),
                               from_float<T>(gelu(sums[m][n][2 * low + 1] + bias[2 * n + 1]))};
      *reinterpret_cast<MlpPair<T>*>(hidden + r * hidden_stride + column + column_of(n, 0)) = pair;
    }
  }

  // What they give to the results. A chunk of one stage is read once for all parts.
  __device__ __forceinline__ void contract(MlpRing<level, T, columns>& ring, WarpSums (&results)[mlp_parts]) const {
    typename Product::Left left;
#pragma unroll
    for (int part = 0; part < mlp_parts; ++part) {
      if (part * columns >= params.outputs) break;
#pragma unroll 1
      for (int k = 0; k < columns; k += mlp_depth<T>) {
        const unsigned char* weight = ring.next();
        if (part == 0 || columns > mlp_depth<T>) Product::load(left, hidden + row * hidden_stride + k, hidden_stride);
        Product::add(results[part], left, weight, column);
      }
    }
  }

  __device__ __forceinline__ void write(const WarpSums (&results)[mlp_parts]) const {
    const View dst = {static_cast<T*>(params.dst.data) + slice * params.slice_stride, params.dst.image_stride,
                      params.dst.row_stride};
#pragma unroll
    for (int i = 0; i < 2 * m_tiles; ++i) {
      const int index = first_row + row + 8 * i + threadIdx.x % 32 / 4, image = index / params.input.rows;
      if (image >= params.input.batch) continue;
      T* to = row_of<T>(dst, image, index % params.input.rows);
#pragma unroll
      for (int j = 0; j < 2 * mlp_parts; ++j) {
        const int c = j / 2 * columns + column + column_of(j % 2, 0);
        const float first = results[j / 2][i / 2][j % 2][i % 2 * 2] + bias2(c);
        const float second = results[j / 2][i / 2][j % 2][i % 2 * 2 + 1] + bias2(c + 1);
        if (c + 1 < params.outputs && reinterpret_cast<uintptr_t>(to + c) % sizeof(MlpPair<T>) == 0) {
          *reinterpret_cast<MlpPair<T>*>(to + c) = {from_float<T>(first), from_float<T>(second)};
        } else {
          if (c < params.outputs) to[c] = from_float<T>(first);
          if (c + 1 < params.outputs) to[c + 1] = from_float<T>(second);
        }
      }
    }
  }

 private:
  // Of number i of a lane in tile n of a warp.
  __device__ __forceinline__ static int column_of(int n, int i) { return 8 * n + threadIdx.x % 4 * 2 + i; }
  __device__ __forceinline__ static float number_of(const void* numbers, int i, int count) {
    return i < count ? to_float(static_cast<const T*>(numbers)[i]) : 0.f;
  }
  __device__ __forceinline__ float bias2(int c) const {
    return params.bias2 == nullptr || slice > 0 ? 0.f : number_of(params.bias2, c, params.outputs);
  }
};

template <Level level, class T, bool half_sums, class Shape, class Source>
__device__ __forceinline__ void mlp_task(const MlpParams& params, Source source, int task) {
  const MlpBlock<level, T, half_sums, Shape> block(params, task);
  MlpRing<level, T, Shape::columns> ring(params, block.slice);
  block.gather(source);
  float results[mlp_parts][Shape::m_tiles][2][4] = {};
#pragma unroll 1
  for (int chunk = ring.order.begin; chunk < ring.order.end; chunk += Shape::columns) {
    block.expand(ring, chunk);
    block.contract(ring, results);
  }
  block.write(results);
  __syncthreads();
}

}  // namespace vitsparse::cuda
