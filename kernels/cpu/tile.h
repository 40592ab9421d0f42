// The one matrix-product kernel: a tile of R rows by C vectors kept in registers, shared by linear, attention and
// apply_pattern. Include after one of the vec_*.h files.
//
// A is read through one pointer per row, so any set of rows will do (rows of several images, a single token of each
// image) and nothing is gathered. B is packed (layout.h). Per step of depth a tile loads C vectors and R scalars for
// R x C multiply-adds; R and C fill the register file.
#pragma once
#include "kernels/cpu/layout.h"

namespace {

using vitsparse::cpu::panel_columns;

// What becomes of the product's rows: out = activation(scale * acc + bias) (+ out). Null pointers: no such term.
struct TileRows {
  const float* a[Vec::max_tile_rows];
  float* out[Vec::max_tile_rows];
  const float* bias[Vec::max_tile_rows];
  float scale[Vec::max_tile_rows];
};
constexpr int64_t fastest_pace = 4;

// A packed matrix, and what will be wanted after a tile: with four steps of depth `pace` cache lines are fetched, from
// `ahead` floats behind the tile's first panel on.
struct Packed {
  const float* data;
  int64_t depth;
  int64_t ahead = 0, pace = 0;
};
struct Epilogue {
  bool has_bias = false, has_scale = false, gelu = false, accumulate = false;
};

template <int R, int C>
void tile(const TileRows& rows, const Packed& packed, int64_t column, int last, Epilogue epilogue) {
  constexpr int W = Vec::W;
  const int64_t depth = packed.depth;
  const float* b[C];
  for (int j = 0; j < C; ++j) {
    const int64_t c = column + j * W;
    b[j] = packed.data + (c / panel_columns) * panel_columns * depth + c % panel_columns;
  }
  Vec acc[R][C];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) acc[i][j] = Vec::set(0.f);

  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    Vec bk[C];
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) bk[j] = Vec::load(b[j] + k * panel_columns);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Vec aik = Vec::set(rows.a[i][k]);
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) acc[i][j] = fma(aik, bk[j], acc[i][j]);
    }
  };
  const float* ahead = b[0] + packed.ahead;
  int64_t k = 0;
  for (; k + 4 <= depth; k += 4) {  // by four, so that reloading spilled row pointers is a small part of the loads
    step(k);
    step(k + 1);
    step(k + 2);
    step(k + 3);
    if (packed.pace == fastest_pace)  // more than the L1 cache can wait for at once
      for (int64_t line = 0; line < fastest_pace; ++line) __builtin_prefetch(ahead + line * panel_columns, 0, 2);
    else
      for (int64_t line = 0; line < packed.pace; ++line) __builtin_prefetch(ahead + line * panel_columns);
    ahead += packed.pace * panel_columns;
  }
  for (; k < depth; ++k) step(k);

#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      if (epilogue.has_scale) acc[i][j] = acc[i][j] * Vec::set(rows.scale[i]);
      if (epilogue.has_bias) {
        const float* bias = rows.bias[i] + column + j * W;
        acc[i][j] = acc[i][j] + (j == C - 1 && last < W ? Vec::load(bias, last) : Vec::load(bias));
      }
    }
  if (epilogue.gelu) {  // through memory, because 28 inlined copies would not fit the instruction cache
    Vec buffer[R * C];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) buffer[i * C + j] = acc[i][j];
#pragma GCC unroll 2
    for (int n = 0; n < R * C; ++n) buffer[n] = gelu(buffer[n]);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) acc[i][j] = buffer[i * C + j];
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      float* out = rows.out[i] + column + j * W;
      if (j == C - 1 && last < W) {
        if (epilogue.accumulate) acc[i][j] = acc[i][j] + Vec::load(out, last);
        acc[i][j].store(out, last);
      } else {
        if (epilogue.accumulate) acc[i][j] = acc[i][j] + Vec::load(out);
        acc[i][j].store(out);
      }
    }
}

using TileFunction = void (*)(const TileRows&, const Packed&, int64_t, int, Epilogue);

template <int C, int R = Vec::max_tile_rows>
TileFunction tile_of_rows(int rows) {
  if constexpr (R == 1) {
    return tile<1, C>;
  } else {
    return rows == R ? tile<R, C> : tile_of_rows<C, R - 1>(rows);
  }
}

// Columns that one call of multiply_rows should cover: wide tiles when there are few rows.
inline int64_t columns_at_once(int rows) { return (rows <= Vec::few_rows ? 4 : 2) * Vec::W; }

// One row block (at most max_tile_rows rows) times columns [begin, end) of the packed matrix; begin is a multiple of W.
inline void multiply_rows(const TileRows& rows, int count, const Packed& packed, int64_t begin, int64_t end,
                          Epilogue epilogue) {
  constexpr int W = Vec::W;
  const TileFunction two = tile_of_rows<2>(count), one = tile_of_rows<1>(count);
  int64_t column = begin;
  if (count <= Vec::few_rows) {
    const TileFunction four = tile_of_rows<4, Vec::few_rows>(count);
    for (; end - column > 3 * W; column += 4 * W) {
      const int64_t left = end - column - 3 * W;
      four(rows, packed, column, left < W ? static_cast<int>(left) : W, epilogue);
    }
  }
  for (; end - column > W; column += 2 * W) {
    const int64_t left = end - column - W;
    two(rows, packed, column, left < W ? static_cast<int>(left) : W, epilogue);
  }
  if (column < end) one(rows, packed, column, static_cast<int>(end - column), epilogue);
}

// Cuts `rows` rows into blocks of nearly equal height (65 = 5 x 13, not 4 x 14 + 9).
inline int64_t row_blocks(int64_t rows) { return (rows + Vec::max_tile_rows - 1) / Vec::max_tile_rows; }
inline int64_t block_begin(int64_t rows, int64_t blocks, int64_t block) { return rows * block / blocks; }

}  // namespace
