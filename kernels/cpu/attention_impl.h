// Body of attention for one instruction set; include after vec_*.h and vec_math.h.
//
// Keys and values of a head are packed once; then each block of query rows goes through scores, softmax and values
// while everything lies in the L1 cache. A few keys that would fill a vector with padding (the class token makes 65
// tokens of 64) are multiplied one by one.
#pragma once
#include "kernels/cpu/attention.h"
#include "kernels/cpu/pack_impl.h"
#include "kernels/cpu/tile.h"
#include "kernels/cpu/workspace.h"

namespace {

using vitsparse::cpu::Attention;

// scores <- 2^(scores - max), in place; returns 1 / sum, which the product with the values applies.
inline float softmax_numerators(float* scores, int64_t count) {
  constexpr int W = Vec::W;
  const int64_t full = count / W * W;
  const int tail = static_cast<int>(count - full);
  const Vec lowest = Vec::set(-__builtin_inff());
  Vec top = lowest;
  for (int64_t j = 0; j < full; j += W) top = max(top, Vec::load(scores + j));
  const Vec rest = tail ? keep_first(Vec::load(scores + full), tail, lowest) : lowest;
  top = max(top, rest);
  const Vec shift = Vec::set(largest(top));
  Vec total = Vec::set(0.f);
  for (int64_t j = 0; j < full; j += W) {
    const Vec e = exp2(Vec::load(scores + j) - shift);
    e.store(scores + j);
    total = total + e;
  }
  if (tail) {
    const Vec e = keep_first(exp2(rest - shift), tail, Vec::set(0.f));
    e.store(scores + full);
    total = total + e;
  }
  return 1.f / sum(total);
}

struct AttentionBuffers {
  float *keys, *values, *scores;
  int64_t packed_keys;    // those in `keys`; the few behind them are read in place
  int64_t scores_stride;  // all keys, padded to whole vectors
  explicit AttentionBuffers(const Attention& op)
      : packed_keys(op.keys % Vec::W <= Vec::W / 4 ? op.keys / Vec::W * Vec::W : op.keys),
        scores_stride((op.keys + Vec::W - 1) / Vec::W * Vec::W) {
    const int64_t k_size = vitsparse::cpu::packed_size(op.keys, op.head_dim);
    const int64_t v_size = vitsparse::cpu::packed_size(op.head_dim, op.keys);
    keys = workspace(vitsparse::cpu::Purpose::kernel, k_size + v_size + Vec::max_tile_rows * scores_stride);
    values = keys + k_size;
    scores = values + v_size;
  }
};

inline float dot(const float* a, const float* b, int64_t count) {
  Vec total = Vec::set(0.f);
  int64_t i = 0;
  for (; i + Vec::W <= count; i += Vec::W) total = fma(Vec::load(a + i), Vec::load(b + i), total);
  const int tail = static_cast<int>(count - i);
  if (tail) total = fma(Vec::load(a + i, tail), Vec::load(b + i, tail), total);
  return sum(total);
}

inline void attend_block(const Attention& op, const AttentionBuffers& buffers, int64_t image, int64_t head,
                         int64_t first, int count) {
  const int64_t column = head * op.head_dim;
  TileRows rows;
  for (int i = 0; i < count; ++i) {
    rows.a[i] = op.q.row(image, first + i) + column;
    rows.out[i] = buffers.scores + i * buffers.scores_stride;
    rows.scale[i] = op.scale * 1.44269504f;  // log2(e): softmax in powers of 2
  }
  Epilogue scaled;
  scaled.has_scale = true;
  multiply_rows(rows, count, Packed{buffers.keys, op.head_dim}, 0, buffers.packed_keys, scaled);
  for (int64_t key = buffers.packed_keys; key < op.keys; ++key)
    for (int i = 0; i < count; ++i)
      rows.out[i][key] = rows.scale[i] * dot(rows.a[i], op.k.row(image, key) + column, op.head_dim);
  for (int i = 0; i < count; ++i) {
    rows.scale[i] = softmax_numerators(rows.out[i], op.keys);
    rows.a[i] = rows.out[i];
    rows.out[i] = op.dst.row(image, first + i) + column;
  }
  multiply_rows(rows, count, Packed{buffers.values, op.keys}, 0, op.head_dim, scaled);
}

inline void write_zeros(const Attention& op, int64_t image, int64_t column) {
  for (int64_t r = 0; r < op.queries; ++r) {
    float* out = op.dst.row(image, r) + column;
    for (int64_t c = 0; c < op.head_dim; ++c) out[c] = 0.f;
  }
}

inline void attention_impl(const Attention& op, int64_t begin, int64_t end) {
  const AttentionBuffers buffers(op);
  const int64_t blocks = row_blocks(op.queries);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / op.heads, head = task % op.heads, column = head * op.head_dim;
    if (op.head_keep && !op.head_keep[task]) {
      write_zeros(op, image, column);
      continue;
    }
    pack_transposed(op.k.row(image, 0) + column, op.k.row_stride, buffers.packed_keys, op.head_dim, buffers.keys);
    pack_straight(op.v.row(image, 0) + column, op.v.row_stride, op.keys, op.head_dim, buffers.values);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block_begin(op.queries, blocks, block), next = block_begin(op.queries, blocks, block + 1);
      attend_block(op, buffers, image, head, first, static_cast<int>(next - first));
    }
  }
}

}  // namespace
