// One warp makes a row of several sums and norms that share terms: each is read once, and added to the sums that want
// it.
//
// A lane holds one or a few vectors of 16 bytes of each sum in registers, as float, and asks for 4 vectors before it
// waits for the first: more would cost so many registers that fewer warps could ask. Which sums want a term are the
// bits of a number that is the same for all lanes.
#pragma once
#include "kernels/cuda/sum_norm.cuh"

namespace vitsparse::cuda {

// A part of a SUM_NORM step.
struct SumPartRows {
  int terms, adds, minuses;  // first of the indices: those that are added, then those that are taken away
  const void* offset;
  int64_t offset_stride;
  View sum, normed;
};

// What some of the sums add: bit p for sum p.
struct alignas(16) SharedTerm {
  View view;
  uint32_t wanted;
};

// Sums whose terms are listed: sum p adds also those sums before it that are the bits of earlier[p]. The width, and
// where terms and results lie, are whole vectors.
struct SideBySide {
  const SumPartRows* parts;
  const SharedTerm* terms;
  const uint32_t* earlier;
  int count, terms_count;
};

constexpr int most_sums = 8;  // side by side

// How many sums of a width lie in the registers side by side.
VITSPARSE_HD constexpr int sums_side_by_side(int width) { return width <= 256 ? most_sums : 1; }

template <class T, int most, int numbers>
struct SumRow {
  static constexpr int vectors = numbers / per_16_bytes<T>;
  static constexpr int together = vectors < 4 ? 4 / vectors : 1;

  RowPart<T, vectors> sums[most];

  __device__ __forceinline__ void gather(int width, const SideBySide& all, int image, int row) {
#pragma unroll
    for (int p = 0; p < most; ++p) {
      sums[p].width = width;
      sums[p].gather(0, 0, 0, [](int) -> const T* { return nullptr; });
    }
#pragma unroll 1
    for (int first = 0; first < all.terms_count; first += together) add_terms(all, first, image, row);
  }

  __device__ __forceinline__ void add_terms(const SideBySide& all, int first, int image, int row) {
    uint4 read[together][vectors];
    uint32_t wanted[together];
#pragma unroll
    for (int j = 0; j < together; ++j) {
      const bool any = first + j < all.terms_count;
      const SharedTerm& term = all.terms[any ? first + j : first];
      wanted[j] = any ? term.wanted : 0;
      const T* numbers_of_row = row_of<const T>(term.view, image, row);
#pragma unroll
      for (int i = 0; i < vectors; ++i) {
        const int column = sums[0].column(i);
        read[j][i] = any && column < sums[0].width ? *reinterpret_cast<const uint4*>(numbers_of_row + column)
                                                   : make_uint4(0, 0, 0, 0);
      }
    }
#pragma unroll
    for (int j = 0; j < together; ++j)
#pragma unroll
      for (int p = 0; p < most; ++p)
        if (wanted[j] >> p & 1)
#pragma unroll
          for (int i = 0; i < vectors; ++i) sums[p].add(i, read[j][i], 1.f);
  }

  __device__ __forceinline__ void add_earlier(const SideBySide& all) {
#pragma unroll
    for (int p = 1; p < most; ++p) {
      const uint32_t earlier = p < all.count ? all.earlier[p] : 0;
      if (earlier == 0) continue;
#pragma unroll
      for (int q = 0; q < p; ++q)
        if (earlier >> q & 1)
#pragma unroll
          for (int i = 0; i < vectors; ++i)
#pragma unroll
            for (int j = 0; j < sums[p].size; ++j) sums[p].x[i][j] += sums[q].x[i][j];
    }
  }

  // The mean of f over the numbers of each sum.
  template <class F>
  __device__ __forceinline__ void average(float (&totals)[most], F f) const {
#pragma unroll
    for (int p = 0; p < most; ++p) {
      totals[p] = 0.f;
#pragma unroll
      for (int i = 0; i < vectors; ++i) {
        float total = 0.f;
#pragma unroll
        for (int j = 0; j < per_16_bytes<T>; ++j) total += f(p, sums[p].x[i][j]);
        totals[p] += sums[0].column(i) < sums[0].width ? total : 0.f;
      }
      totals[p] = sum_of_warp(totals[p]) / static_cast<float>(sums[0].width);
    }
  }

  __device__ __forceinline__ void write(const SideBySide& all, float eps, int image, int row) const {
    float mean[most], variance[most];
    average(mean, [](int, float x) { return x; });
    average(variance, [&](int p, float x) { return (x - mean[p]) * (x - mean[p]); });
#pragma unroll
    for (int p = 0; p < most; ++p) {
      if (p >= all.count) break;
      const float scale = rsqrtf(variance[p] + eps);
      store(sums[p], row_or_null<T>(all.parts[p].sum, image, row), 0.f, 1.f);
      store(sums[p], row_or_null<T>(all.parts[p].normed, image, row), mean[p], scale);
    }
  }

  static __device__ __forceinline__ void store(const RowPart<T, vectors>& sum, T* row, float mean, float scale) {
    if (row == nullptr) return;
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      Vector<T> vector;
#pragma unroll
      for (int j = 0; j < sum.size; ++j) vector.numbers[j] = from_float<T>((sum.x[i][j] - mean) * scale);
      if (sum.column(i) < sum.width) *reinterpret_cast<Vector<T>*>(row + sum.column(i)) = vector;
    }
  }
};

// A row of at most sums_side_by_side(width) sums.
template <class T, int most, int numbers>
__device__ __forceinline__ void sum_row_side_by_side(int width, float eps, const SideBySide& all, int image, int row) {
  SumRow<T, most, numbers> sums;
  sums.gather(width, all, image, row);
  sums.add_earlier(all);
  sums.write(all, eps, image, row);
}

}  // namespace vitsparse::cuda
