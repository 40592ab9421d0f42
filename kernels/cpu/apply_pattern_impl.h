// Body of apply_pattern for one instruction set; include after one of the vec_*.h files and vec_math.h.
#pragma once
#include "kernels/cpu/apply_pattern.h"
#include "kernels/cpu/pack_impl.h"
#include "kernels/cpu/tile.h"
#include "kernels/cpu/workspace.h"

namespace {

using vitsparse::cpu::ApplyPattern;

inline void apply_pattern_impl(const ApplyPattern& op, int64_t begin, int64_t end) {
  float* values = workspace(vitsparse::cpu::Purpose::kernel, vitsparse::cpu::packed_size(op.head_dim, op.keys));
  const int64_t blocks = row_blocks(op.queries);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / op.heads, head = task % op.heads, column = head * op.head_dim;
    const float* pattern = op.pattern + head * op.queries * op.keys;
    pack_straight(op.v.row(image, 0) + column, op.v.row_stride, op.keys, op.head_dim, values);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block_begin(op.queries, blocks, block), next = block_begin(op.queries, blocks, block + 1);
      TileRows rows;
      for (int64_t r = first; r < next; ++r) {
        rows.a[r - first] = pattern + r * op.keys;
        rows.out[r - first] = op.dst.row(image, r) + column;
      }
      multiply_rows(rows, static_cast<int>(next - first), Packed{values, op.keys}, 0, op.head_dim, Epilogue{});
    }
  }
}

}  // namespace
