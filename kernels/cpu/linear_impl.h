// Body of linear for one instruction set; include after vec_*.h and vec_math.h.
#pragma once
#include "kernels/cpu/linear.h"
#include "kernels/cpu/tile.h"

namespace {

using vitsparse::cpu::Linear;

// A task is a group of columns times a block of rows. The group is the outer index: its panels stay in the L1 cache
// while the row blocks pass, and each weight is read from memory once. Meanwhile each block fetches its share of the
// next group's panels; after the last group, what follows in memory: the next step's weights, if in order.
struct Grid {
  int64_t rows, blocks, tile_columns, group_columns, groups, pace;
  explicit Grid(const Linear& op)
      : rows(op.images * op.rows),
        blocks(row_blocks(rows)),
        tile_columns(columns_at_once(rows < Vec::max_tile_rows ? static_cast<int>(rows) : Vec::max_tile_rows)),
        group_columns(tile_columns * tiles_of_group(op.inputs)),
        groups((op.outputs + group_columns - 1) / group_columns),
        pace(pace_of_fetching()) {}

  // Several where the product is shallow: what a task does besides multiplying should be a small part of it.
  int64_t tiles_of_group(int64_t depth) const {
    constexpr int64_t floats = 4096;  // half of an L1 cache
    const int64_t tiles = floats / (tile_columns * (depth > 0 ? depth : 1));
    return tiles > 0 ? tiles : 1;
  }
  // Cache lines to fetch with four steps of depth, for all blocks together to fetch what one of them will use; but less
  // where few rows use each weight but once or twice and wait for memory anyway.
  int64_t pace_of_fetching() const {
    const int64_t lines = (4 * tile_columns / panel_columns + blocks - 1) / blocks;
    return lines < fastest_pace ? lines : fastest_pace;
  }
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
  const int64_t ahead = grid.group_columns * op.inputs + block * (op.inputs / 4 * grid.pace * panel_columns);
  multiply_rows(rows, count, Packed{op.packed, op.inputs, ahead, grid.pace}, begin, end < op.outputs ? end : op.outputs,
                epilogue);
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
