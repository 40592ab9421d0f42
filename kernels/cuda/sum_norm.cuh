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

// What one thread moves at once.
template <class T>
struct alignas(16) Vector {
  T numbers[per_16_bytes<T>];
};

__device__ __forceinline__ bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

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

  template <class Row>
  __device__ __forceinline__ void gather(int from, int adds, int count, Row source) {
    first = from;
#pragma unroll
    for (int i = 0; i < vectors; ++i)
#pragma unroll
      for (int j = 0; j < size; ++j) x[i][j] = 0.f;
#pragma unroll 1
    for (int s = 0; s < count; s += together) {
      const T* rows[together];
      bool aligned = width % size == 0;
#pragma unroll
      for (int j = 0; j < together; ++j) {
        rows[j] = s + j < count ? source(s + j) : nullptr;
        aligned = aligned && is_aligned(rows[j]);
      }
      if (aligned) {
        add_vectors(rows, adds - s);
      } else {
#pragma unroll 1
        for (int i = s; i < count && i < s + together; ++i) add_numbers(source(i), i < adds ? 1.f : -1.f);
      }
    }
  }

  // Whole vectors of up to `together` rows, of which the first `adds` are added; all are asked for before one is used.
  __device__ __forceinline__ void add_vectors(const T* const (&rows)[together], int adds) {
    uint4 read[together][vectors];
#pragma unroll
    for (int j = 0; j < together; ++j)
#pragma unroll
      for (int i = 0; i < vectors; ++i)
        read[j][i] = rows[j] != nullptr && column(i) < width ? *reinterpret_cast<const uint4*>(rows[j] + column(i))
                                                             : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < together; ++j) {
      if (rows[j] == nullptr) break;
#pragma unroll
      for (int i = 0; i < vectors; ++i) add(i, read[j][i], j < adds ? 1.f : -1.f);
    }
  }

  __device__ __forceinline__ void add(int i, const uint4& vector, float sign) {
    const T* numbers = reinterpret_cast<const T*>(&vector);
#pragma unroll
    for (int j = 0; j < size; ++j) x[i][j] += sign * to_float(numbers[j]);
  }

  // A row at any address.
  __device__ __forceinline__ void add_numbers(const T* row, float sign) {
#pragma unroll
    for (int i = 0; i < vectors; ++i)
#pragma unroll
      for (int j = 0; j < size; ++j)
        if (column(i) + j < width) x[i][j] += sign * to_float(row[column(i) + j]);
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
    const bool aligned = width % size == 0 && is_aligned(row);
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      Vector<T> vector;
#pragma unroll
      for (int j = 0; j < size; ++j) vector.numbers[j] = from_float<T>(f(x[i][j]));
      if (aligned) {
        if (column(i) < width) *reinterpret_cast<Vector<T>*>(row + column(i)) = vector;
      } else {
#pragma unroll
        for (int j = 0; j < size; ++j)
          if (column(i) + j < width) row[column(i) + j] = vector.numbers[j];
      }
    }
  }
};

// `numbers` of a lane at a time; a row of more is read again in each of three passes: mean, variance, results. The first
// `adds` of `count` sources are added.
template <class T, int numbers, class Row>
__device__ __forceinline__ void sum_norm_parts(int width, float eps, int adds, int count, Row source, T* sum, T* normed) {
  RowPart<T, numbers / per_16_bytes<T>> part;
  part.width = width;
  float mean = 0.f, scale = 1.f;
#pragma unroll 1
  for (int pass = normed == nullptr ? 2 : 0; pass < 3; ++pass) {
    float total = 0.f;
#pragma unroll 1
    for (int c = 0; c < width; c += part.columns) {
      if (pass == 0 || normed == nullptr || width > part.columns) part.gather(c, adds, count, source);
      if (pass < 2) {
        total += part.total([=](float x) { return pass == 0 ? x : (x - mean) * (x - mean); });
      } else {
        part.write(sum, [](float x) { return x; });
        part.write(normed, [=](float x) { return (x - mean) * scale; });
      }
    }
    total = sum_of_warp(total) / static_cast<float>(width);
    if (pass == 0) mean = total;
    if (pass == 1) scale = rsqrtf(total + eps);
  }
}

template <class T, class Row>
__device__ __forceinline__ void sum_norm_row(int width, float eps, int adds, int minuses, Row source, const T* offset,
                                             T* sum, T* normed) {
  const int before = offset == nullptr ? 0 : 1;  // the offset is the first source
  const auto all = [&](int i) { return i < before ? offset : source(i - before); };
  if (width <= 256) {
    sum_norm_parts<T, 8>(width, eps, adds + before, before + adds + minuses, all, sum, normed);
  } else {
    sum_norm_parts<T, 32>(width, eps, adds + before, before + adds + minuses, all, sum, normed);
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
  sum_norm_row<T>(params.width, params.eps, params.count, params.minuses,
                  [&](int i) -> const T* { return row_of<const T>(params.sources[i], image, row); },
                  offset == nullptr ? nullptr : offset + row * params.offset_stride,
                  row_or_null<T>(params.sum, image, row), row_or_null<T>(params.normed, image, row));
}

}  // namespace vitsparse::cuda
