// Steps of a program that only move numbers, or nearly so.
#pragma once
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/layout.h"

namespace vitsparse::cpu {

// Images -> row-major patches, each flattened (channel, y, x); `rows` of them from the patch `first` on. A task is one
// patch: task = image * rows + row.
struct CutPatches {
  const float* pixels;  // [images, channels, size, size]
  MutableRows dst;
  int64_t images, first, rows, channels, size, patch;
};

// dst (one row) = mean over the rows of src. A task is one image.
struct MeanRows {
  Rows src;
  MutableRows dst;
  int64_t images, rows, width;
};

// The constant [rows, width] copied into every image. A task is one image.
struct Fill {
  const float* constant;
  MutableRows dst;
  int64_t images, rows, width;
};

inline void cut_patches(const CutPatches& op, int64_t begin, int64_t end) {
  const auto cut = [&](auto patch) {  // a compile-time patch makes the copies single moves
    const int64_t side = op.size / patch;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / op.rows, r = op.first + task % op.rows;
      float* out = op.dst.row(image, task % op.rows);
      for (int64_t c = 0; c < op.channels; ++c) {
        const int64_t line = (image * op.channels + c) * op.size + r / side * patch;
        const float* in = op.pixels + line * op.size + r % side * patch;
        for (int64_t y = 0; y < patch; ++y, in += op.size, out += patch) std::memcpy(out, in, patch * sizeof(float));
      }
    }
  };
  switch (op.patch) {
    case 4: return cut(std::integral_constant<int64_t, 4>{});
    case 8: return cut(std::integral_constant<int64_t, 8>{});
    case 16: return cut(std::integral_constant<int64_t, 16>{});
    default: return cut(op.patch);
  }
}

inline void mean_rows(const MeanRows& op, int64_t begin, int64_t end) {
  const float scale = 1.f / static_cast<float>(op.rows);
  for (int64_t image = begin; image < end; ++image) {
    float* out = op.dst.row(image, 0);
    std::fill(out, out + op.width, 0.f);
    for (int64_t r = 0; r < op.rows; ++r)
      for (int64_t c = 0; c < op.width; ++c) out[c] += op.src.row(image, r)[c];
    for (int64_t c = 0; c < op.width; ++c) out[c] *= scale;
  }
}

inline void fill(const Fill& op, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image)
    for (int64_t r = 0; r < op.rows; ++r)
      std::memcpy(op.dst.row(image, r), op.constant + r * op.width, op.width * sizeof(float));
}

}  // namespace vitsparse::cpu
