// Packing of a head's keys and values into panels (layout.h); include after one of the vec_*.h files.
#pragma once
#include "kernels/cpu/layout.h"

namespace {

// Transposes 4 rows of 4 floats; `stride` floats between the rows written.
inline void transpose_4x4(const float* const* rows, int64_t k, float* out, int64_t stride) {
  typedef float Four __attribute__((vector_size(16), aligned(4)));
  typedef int Index __attribute__((vector_size(16)));
  const auto at = [&](int i) { return *reinterpret_cast<const Four*>(rows[i] + k); };
  const Four a = at(0), b = at(1), c = at(2), d = at(3);
  const Four ab = __builtin_shuffle(a, b, Index{0, 4, 1, 5}), AB = __builtin_shuffle(a, b, Index{2, 6, 3, 7});
  const Four cd = __builtin_shuffle(c, d, Index{0, 4, 1, 5}), CD = __builtin_shuffle(c, d, Index{2, 6, 3, 7});
  const auto put = [&](int i, Four x) { *reinterpret_cast<Four*>(out + i * stride) = x; };
  put(0, __builtin_shuffle(ab, cd, Index{0, 1, 4, 5}));
  put(1, __builtin_shuffle(ab, cd, Index{2, 3, 6, 7}));
  put(2, __builtin_shuffle(AB, CD, Index{0, 1, 4, 5}));
  put(3, __builtin_shuffle(AB, CD, Index{2, 3, 6, 7}));
}

// Rows [count, depth] become columns: packed[panel][depth][16]. Used for k, whose product is q k^T. The columns up to
// the next multiple of a vector repeat the last row; later ones are not written, and no tile reads them.
inline void pack_transposed(const float* rows, int64_t row_stride, int64_t count, int64_t depth, float* packed) {
  constexpr int64_t P = vitsparse::cpu::panel_columns;
  const int64_t padded = (count + Vec::W - 1) / Vec::W * Vec::W;
  for (int64_t first = 0; first < padded; first += 4, packed += first % P == 0 ? P * depth : 0) {
    float* out = packed + first % P;
    const float* four[4];
    for (int64_t i = 0; i < 4; ++i) four[i] = rows + (first + i < count ? first + i : count - 1) * row_stride;
    int64_t k = 0;
    for (; k + 4 <= depth; k += 4) transpose_4x4(four, k, out + k * P, P);
    for (; k < depth; ++k)
      for (int64_t i = 0; i < 4; ++i) out[k * P + i] = four[i][k];
  }
}

// Rows [depth, columns] copied into packed[panel][depth][16], zero-padded. Used for v, whose product is p v.
inline void pack_straight(const float* rows, int64_t row_stride, int64_t depth, int64_t columns, float* packed) {
  constexpr int64_t P = vitsparse::cpu::panel_columns;
  for (int64_t first = 0; first < columns; first += P)
    for (int64_t k = 0; k < depth; ++k, packed += P)
      for (int64_t lane = 0; lane < P; lane += Vec::W) {
        const int64_t left = columns - first - lane;
        const float* from = rows + k * row_stride + first + lane;
        if (left >= Vec::W)
          Vec::load(from).store(packed + lane);
        else
          Vec::load(from, left > 0 ? static_cast<int>(left) : 0).store(packed + lane);
      }
}

}  // namespace
