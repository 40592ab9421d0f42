// How kernels see memory: views of batches of rows, and matrices packed in panels of columns.
#pragma once
#include <cstdint>

namespace vitsparse::cpu {

// Row r of image b begins at data + b * image_stride + r * row_stride (strides in floats; image_stride 0: the same
// rows for each image). The columns of a row are contiguous.
template <class T>
struct RowsOf {
  T* data;
  int64_t image_stride;
  int64_t row_stride;
  T* row(int64_t image, int64_t r) const { return data + image * image_stride + r * row_stride; }
};
using Rows = RowsOf<const float>;
using MutableRows = RowsOf<float>;

// A packed matrix of `columns` columns and `depth` rows is a sequence of panels of 16 columns, each [depth][16],
// zero-padded: one cache line a step, and the same bytes for each instruction set.
constexpr int64_t panel_columns = 16;
constexpr int64_t panels(int64_t columns) { return (columns + panel_columns - 1) / panel_columns; }
constexpr int64_t packed_size(int64_t columns, int64_t depth) { return panels(columns) * panel_columns * depth; }

}  // namespace vitsparse::cpu
