// One warp makes one row of sum and norm: a primitive that sum_norm.cu, the fused MLP and the program kernel share.
//
//   sum_norm_row<T>(width, eps, adds, minuses, source, offset, sum, normed)
//     called by all lanes of a warp with equal arguments; any width, any address
//     source(i)  -> const T*, row of source i: the first `adds` are added, the next `minuses` taken away
//     offset     row that is added as well, or null
//     sum        row to write, or null; may be a source
//     normed     row to write, or null: (sum - mean) / sqrt(variance + eps); may be in shared memory
//
// A lane holds vectors of 16 bytes of the row in registers, as float, for rows of up to 1024 numbers. Sources are read by
// 16 bytes where address and width allow it, several of them before the first is waited for. The variance is taken in a
// second pass over the registers: E[r^2] - E[r]^2 would cancel where the mean is large. Wider rows are read three times.
#pragma once
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/sum_norm.h"

namespace vitsparse::cuda {

constexpr int lane_numbers = 32;  // that a lane keeps in registers at most

// What one thread moves at once.
template <class T>
struct alignas(16) Vector {
  T numbers[per_16_bytes<T>];
};

// Reads or writes the first `count` numbers of a vector; count <= 0: none, and a read gives zeros.
template <class T>
__device__ __forceinline__ Vector<T> read_vector(const T* from, int count) {
  constexpr int size = per_16_bytes<T>;
  if (count >= size && reinterpret_cast<uintptr_t>(from) % 16 == 0) return *reinterpret_cast<const Vector<T>*>(from);
  Vector<T> vector;
#pragma unroll
  for (int j = 0; j < size; ++j) vector.numbers[j] = j < count ? from[j] : from_float<T>(0.f);
  return vector;
}
template <class T>
__device__ __forceinline__ void write_vector(T* to, const Vector<T>& vector, int count) {
  constexpr int size = per_16_bytes<T>;
  if (count >= size && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    *reinterpret_cast<Vector<T>*>(to) = vector;
    return;
  }
#pragma unroll
  for (int j = 0; j < size; ++j)
    if (j < count) to[j] = vector.numbers[j];
}

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// The columns from `first` on of a row, `columns` of them at most, in the registers of a warp: vector i of a lane begins
// at column first + (32 i + lane) * size.
template <class T, int vectors>
struct RowPart {
  static constexpr int size = per_16_bytes<T>, columns = 32 * vectors * size;
  static constexpr int together = vectors < 8 ? 8 / vectors : 1;  // sources in flight: 8 vectors a lane

  float x[vectors][size];
  int width, first;

  __device__ __forceinline__ int column(int i) const { return first + (32 * i + static_cast<int>(threadIdx.x % 32)) * size; }

  __device__ __forceinline__ void add(const Vector<T> (&from)[vectors], float sign) {
#pragma unroll
    for (int i = 0; i < vectors; ++i)
#pragma unroll
      for (int j = 0; j < size; ++j) x[i][j] += sign * to_float(from[i].numbers[j]);
  }

  __device__ __forceinline__ void read(Vector<T> (&to)[vectors], const T* row) const {
#pragma unroll
    for (int i = 0; i < vectors; ++i) to[i] = read_vector(row + column(i), width - column(i));
  }

  template <class Row>
  __device__ __forceinline__ void gather(int from, int adds, int minuses, Row source, const T* offset) {
    first = from;
#pragma unroll
    for (int i = 0; i < vectors; ++i)
#pragma unroll
      for (int j = 0; j < size; ++j) x[i][j] = 0.f;
    Vector<T> read_ahead[together][vectors];
    if (offset != nullptr) {
      read(read_ahead[0], offset);
      add(read_ahead[0], 1.f);
    }
    const int count = adds + minuses;
#pragma unroll 1
    for (int s = 0; s < count; s += together) {
#pragma unroll
      for (int j = 0; j < together; ++j)
        if (s + j < count) read(read_ahead[j], source(s + j));
#pragma unroll
      for (int j = 0; j < together; ++j)
        if (s + j < count) add(read_ahead[j], s + j < adds ? 1.f : -1.f);
    }
  }

  // f(x) summed over the columns of this lane.
  template <class F>
  __device__ __forceinline__ float total(F f) const {
    float result = 0.f;
#pragma unroll
    for (int i = 0; i < vectors; ++i)
#pragma unroll
      for (int j = 0; j < size; ++j) result += column(i) + j < width ? f(x[i][j]) : 0.f;
    return result;
  }

  template <class F>
  __device__ __forceinline__ void write(T* row, F f) const {
    if (row == nullptr) return;
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      Vector<T> vector;
#pragma unroll
      for (int j = 0; j < size; ++j) vector.numbers[j] = from_float<T>(f(x[i][j]));
      write_vector(row + column(i), vector, width - column(i));
    }
  }
};

// Rows of which a warp holds all at once.
template <class T, int numbers, class Row>
__device__ __forceinline__ void sum_norm_narrow(int width, float eps, int adds, int minuses, Row source, const T* offset,
                                                T* sum, T* normed) {
  RowPart<T, numbers / per_16_bytes<T>> part{};
  part.width = width;
  part.gather(0, adds, minuses, source, offset);
  part.write(sum, [](float x) { return x; });
  if (normed == nullptr) return;
  const float mean = sum_of_warp(part.total([](float x) { return x; })) / static_cast<float>(width);
  const float squares = sum_of_warp(part.total([mean](float x) { return (x - mean) * (x - mean); }));
  const float scale = rsqrtf(squares / static_cast<float>(width) + eps);
  part.write(normed, [=](float x) { return (x - mean) * scale; });
}

// Wider rows: a part after the other, summed again in each of three passes.
template <class T, class Row>
__device__ __forceinline__ void sum_norm_wide(int width, float eps, int adds, int minuses, Row source, const T* offset,
                                              T* sum, T* normed) {
  RowPart<T, lane_numbers / per_16_bytes<T>> part{};
  part.width = width;
  float mean = 0.f, scale = 1.f, total = 0.f;
#pragma unroll 1
  for (int pass = normed == nullptr ? 2 : 0; pass < 3; ++pass) {
    total = 0.f;
#pragma unroll 1
    for (int c = 0; c < width; c += part.columns) {
      part.gather(c, adds, minuses, source, offset);
      if (pass == 2) {
        part.write(sum, [](float x) { return x; });
        part.write(normed, [=](float x) { return (x - mean) * scale; });
      } else {
        total += part.total([=](float x) { return pass == 0 ? x : (x - mean) * (x - mean); });
      }
    }
    if (pass == 0) mean = sum_of_warp(total) / static_cast<float>(width);
    if (pass == 1) scale = rsqrtf(sum_of_warp(total) / static_cast<float>(width) + eps);
  }
}

template <class T, class Row>
__device__ __forceinline__ void sum_norm_row(int width, float eps, int adds, int minuses, Row source, const T* offset,
                                             T* sum, T* normed) {
  if (width <= 256) {
    sum_norm_narrow<T, 8>(width, eps, adds, minuses, source, offset, sum, normed);
  } else if (width <= 512) {
    sum_norm_narrow<T, 16>(width, eps, adds, minuses, source, offset, sum, normed);
  } else if (width <= 1024) {
    sum_norm_narrow<T, lane_numbers>(width, eps, adds, minuses, source, offset, sum, normed);
  } else {
    sum_norm_wide<T>(width, eps, adds, minuses, source, offset, sum, normed);
  }
}

// The row of a view; T* or, for what is only read, const T*.
template <class T>
__device__ __forceinline__ T* row_of(const View& view, int image, int row) {
  return static_cast<T*>(view.data) + image * view.image_stride + row * view.row_stride;
}
template <class T>
__device__ __forceinline__ T* row_or_null(const View& view, int image, int row) {
  return view.data == nullptr ? nullptr : row_of<T>(view, image, row);
}

// Row `index` of all images of an operation.
template <class T>
__device__ __forceinline__ void sum_norm_task(const SumNormParams& params, int index) {
  const int image = index / params.rows, row = index % params.rows;
  const T* offset = static_cast<const T*>(params.offset);
  sum_norm_row<T>(params.width, params.eps, params.count, 0,
                  [&](int i) -> const T* { return row_of<const T>(params.sources[i], image, row); },
                  offset == nullptr ? nullptr : offset + row * params.offset_stride,
                  row_or_null<T>(params.sum, image, row), row_or_null<T>(params.normed, image, row));
}

}  // namespace vitsparse::cuda
