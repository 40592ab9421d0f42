// Body of sum_norm for one instruction set; include after one of the vec_*.h files.
//
// Several parts make a row together, a few columns at a time: those of all sources fit the L1 cache, where the second
// part and the later ones find them. Mean and variance are taken in two passes: E[r^2] - E[r]^2 would cancel where the
// mean is large.
#pragma once
#include "kernels/cpu/sum_norm.h"
#include "kernels/cpu/workspace.h"

namespace {

using vitsparse::cpu::SumNorm;
using vitsparse::cpu::SumPart;

// Calls body(column, load, store, lanes) for the vectors of a row from column c on; all lanes but in the last vector.
template <class Body>
inline void for_each_vector(int64_t c, int64_t width, const Body& body) {
  for (; c + Vec::W <= width; c += Vec::W)
    body(c, [](const float* p) { return Vec::load(p); }, [](Vec x, float* p) { x.store(p); }, Vec::W);
  const int tail = static_cast<int>(width - c);
  if (tail)
    body(c, [tail](const float* p) { return Vec::load(p, tail); }, [tail](Vec x, float* p) { x.store(p, tail); }, tail);
}

// A row of one part while it is made.
struct PartRow {
  const float* offset;
  float* sum;  // where the normalised row will be, if the sum itself is not wanted
  float* normed;
  float total;
};

// Vectors that are summed at once: four cache lines, or as many as there are registers for.
constexpr int vectors_together = 8 * Vec::W < 64 ? 8 : 64 / Vec::W;
constexpr int64_t columns_together = vectors_together * Vec::W;

// N vectors of a part's row, from column c on; returns their sum. row_of(i): the row of source or sum i.
template <int N, class RowOf, class Load, class Store>
inline Vec sum_vectors(const SumPart& part, RowOf row_of, const PartRow& row, int64_t c, Load load, Store store) {
  constexpr int W = Vec::W;
  Vec x[N];
  for (int j = 0; j < N; ++j) x[j] = row.offset ? load(row.offset + c + j * W) : Vec::set(0.f);
  for (int64_t i = 0; i < part.add_count; ++i) {
    const float* a = row_of(part.adds[i]) + c;
    for (int j = 0; j < N; ++j) x[j] = x[j] + load(a + j * W);
  }
  for (int64_t i = 0; i < part.minus_count; ++i) {
    const float* a = row_of(part.minuses[i]) + c;
    for (int j = 0; j < N; ++j) x[j] = x[j] - load(a + j * W);
  }
  for (int j = 0; j < N; ++j) store(x[j], row.sum + c + j * W);
#pragma GCC unroll 4
  for (int n = N / 2; n > 0; n /= 2)
#pragma GCC unroll 4
    for (int j = 0; j < n; ++j) x[j] = x[j] + x[j + n];
  return x[0];
}

template <class RowOf>
inline float sum_columns(const SumPart& part, RowOf row_of, const PartRow& row, int64_t begin, int64_t end) {
  const auto load = [](const float* x) { return Vec::load(x); };
  const auto store = [](Vec x, float* out) { x.store(out); };
  Vec total = Vec::set(0.f);
  int64_t c = begin;
  for (; c + columns_together <= end; c += columns_together)
    total = total + sum_vectors<vectors_together>(part, row_of, row, c, load, store);
  for_each_vector(c, end, [&](int64_t column, auto load_some, auto store_some, int) {
    total = total + sum_vectors<1>(part, row_of, row, column, load_some, store_some);
  });
  return sum(total);
}

inline void normalise(const PartRow& row, int64_t width, float eps) {
  const Vec mean = Vec::set(row.total / static_cast<float>(width)), none = Vec::set(0.f);
  Vec squares[4] = {none, none, none, none};  // as many chains of additions
  int64_t first = 0;
  for (; first + 4 * Vec::W <= width; first += 4 * Vec::W)
    for (int j = 0; j < 4; ++j) {
      const Vec d = Vec::load(row.sum + first + j * Vec::W) - mean;
      squares[j] = fma(d, d, squares[j]);
    }
  for_each_vector(first, width, [&](int64_t c, auto load, auto, int lanes) {
    const Vec d = keep_first(load(row.sum + c) - mean, lanes, none);
    squares[0] = fma(d, d, squares[0]);
  });
  const float variance = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<float>(width);
  const Vec scale = Vec::set(1.f / __builtin_sqrtf(variance + eps));
  for_each_vector(0, width, [&](int64_t c, auto load, auto store, int) {
    store((load(row.sum + c) - mean) * scale, row.normed + c);
  });
}

inline PartRow begin_row(const SumPart& part, int64_t image, int64_t r) {
  float* normed = part.normed.data ? part.normed.row(image, r) : nullptr;
  float* sum = part.sum.data ? part.sum.row(image, r) : normed;
  return {part.offset ? part.offset + r * part.offset_stride : nullptr, sum, normed, 0.f};
}

inline void sum_norm_of_one(const SumNorm& op, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / op.rows, r = task % op.rows;
    PartRow row = begin_row(*op.parts, image, r);
    row.total = sum_columns(*op.parts, [&](int64_t s) { return op.sources[s].row(image, r); }, row, 0, op.width);
    if (row.normed) normalise(row, op.width, op.eps);
  }
}

struct SumBuffers {
  const float** rows;  // of each source, then of each part's sum
  PartRow* parts;
  explicit SumBuffers(const SumNorm& op) {
    using namespace vitsparse::cpu;
    const int64_t parts_size = op.part_count * static_cast<int64_t>(sizeof(PartRow));
    const int64_t rows_size = (op.count + op.part_count) * static_cast<int64_t>(sizeof(float*));
    parts = static_cast<PartRow*>(workspace_bytes(Purpose::kernel, parts_size + rows_size));
    rows = reinterpret_cast<const float**>(parts + op.part_count);
  }
  void begin(const SumNorm& op, int64_t image, int64_t r) const {
    for (int64_t s = 0; s < op.count; ++s) rows[s] = op.sources[s].row(image, r);
    for (int64_t p = 0; p < op.part_count; ++p) {
      parts[p] = begin_row(op.parts[p], image, r);
      rows[op.count + p] = parts[p].sum;
    }
  }
};

// Asks for the columns from c on of this part's share of the sources: no processor follows so many streams by itself.
inline void fetch_columns(const SumNorm& op, const float* const* rows, int64_t part, int64_t c) {
  const int64_t next = op.count * (part + 1) / op.part_count;
  for (int64_t s = op.count * part / op.part_count; s < next; ++s)
    for (int64_t line = 0; line < columns_together; line += 16) __builtin_prefetch(rows[s] + c + line, 0, 2);
}

inline void sum_norm_of_many(const SumNorm& op, int64_t begin, int64_t end) {
  constexpr int64_t few = 6144;  // floats that leave room in an L1 cache
  const bool whole = op.count * op.width <= few;
  const int64_t step = whole ? op.width : columns_together;
  const SumBuffers buffers(op);
  for (int64_t task = begin; task < end; ++task) {
    buffers.begin(op, task / op.rows, task % op.rows);
    for (int64_t c = 0; c < op.width; c += step)
      for (int64_t p = 0; p < op.part_count; ++p) {
        if (!whole) fetch_columns(op, buffers.rows, p, c + step);
        const auto row_of = [&](int64_t i) { return buffers.rows[i]; };
        PartRow& row = buffers.parts[p];
        row.total += sum_columns(op.parts[p], row_of, row, c, c + step < op.width ? c + step : op.width);
      }
    for (int64_t p = 0; p < op.part_count; ++p)
      if (buffers.parts[p].normed) normalise(buffers.parts[p], op.width, op.eps);
  }
}

inline void sum_norm_impl(const SumNorm& op, int64_t begin, int64_t end) {
  op.part_count == 1 ? sum_norm_of_one(op, begin, end) : sum_norm_of_many(op, begin, end);
}

}  // namespace
