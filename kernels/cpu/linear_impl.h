// Body of linear for one instruction set; include after vec_*.h and vec_math.h.
#pragma once
#include "kernels/cpu/linear.h"
#include "kernels/cpu/tile.h"

namespace {

using vitsparse::cpu::Linear;

// A task is a group of columns times a block of rows. The group is the outer index: its panel stays in the L1 cache
// while the row blocks pass, and each weight is read from memory once. Meanwhile the first blocks fetch the panels of
// the next group, one panel each; after the last group, what follows in memory: the next step's weights, if in order.
struct Grid {
  int64_t rows, blocks, group_columns, groups;
  explicit Grid(const Linear& op)
      : rows(op.images * op.rows),
        blocks(row_blocks(rows)),
        group_columns(columns_at_once(rows < Vec::max_tile_rows ? static_cast<int>(rows) : Vec::max_tile_rows)),
        groups((op.outputs + group_columns - 1) / group_columns) {}
};

inline void linear_block(const Linear& op, const Grid& grid, int64_t group, int64_t block) {
  const int64_t first = block_begin(grid.rows, grid.blocks, block);
  const int count = static_cast<int>(block_begin(grid.rows, grid.blocks, block + 1) - first);
  TileRows rows;
  int64_t image = first / op.rows, r = first % op.rows;
  for (int i = 0; i < count; ++i) {
    rows.a[i] = op.src.row(image, r);
    rows.out[i] = op.dst.row(image, r);
    rows.bias[i] = op.bias + r * op.bias_stride;
    if (++r == op.rows) r = 0, ++image;
  }
  const int64_t begin = group * grid.group_columns, end = begin + grid.group_columns;
  const Epilogue epilogue{op.bias != nullptr, false, op.activation == vitsparse::cpu::Activation::gelu, op.accumulate};
  const bool fetch = block < (grid.group_columns + panel_columns - 1) / panel_columns;
  const int64_t ahead = (group + 1) * grid.group_columns + block * panel_columns;
  const Packed packed{op.packed, op.inputs, fetch ? op.packed + ahead * op.inputs : nullptr};
  multiply_rows(rows, count, packed, begin, end < op.outputs ? end : op.outputs, epilogue);
}

inline int64_t linear_tasks_impl(const Linear& op) {
  const Grid grid(op);
  return grid.groups * grid.blocks;
}

inline void linear_impl(const Linear& op, int64_t begin, int64_t end) {
  const Grid grid(op);
  for (int64_t task = begin; task < end; ++task) linear_block(op, grid, task / grid.blocks, task % grid.blocks);
}

}  // namespace
