// Body of sum_norm for one instruction set; include after one of the vec_*.h files.
//
// A row is made 64 columns at a time: those of all sources fit the L1 cache, where the second part and the later ones
// find them. Mean and variance are taken from each summed row, which is then in the L1 cache, in two passes:
// E[r^2] - E[r]^2 would cancel where the mean is large.
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
  float* sum;    // where the normalised row will be, if the sum itself is not wanted
  float* normed;
  float total[Vec::W];
};

// Columns that are summed at once: enough chains of additions to hide their latency.
constexpr int64_t columns_together = 8 * Vec::W < 64 ? 8 * Vec::W : 64;

// N vectors of a part's row, from column c on. `rows`: the row of each source, then of each part's sum.
template <int N, class Load, class Store>
inline void sum_columns(const SumPart& part, const float* const* rows, PartRow& row, int64_t c, Load load, Store store) {
  constexpr int W = Vec::W;
  Vec x[N];
  for (int j = 0; j < N; ++j) x[j] = row.offset ? load(row.offset + c + j * W) : Vec::set(0.f);
  int64_t i = 0;
  for (; i + 2 <= part.add_count; i += 2) {  // in pairs: half as long a chain
    const float *a = rows[part.adds[i]] + c, *b = rows[part.adds[i + 1]] + c;
    for (int j = 0; j < N; ++j) x[j] = x[j] + (load(a + j * W) + load(b + j * W));
  }
  for (; i < part.add_count; ++i) {
    const float* a = rows[part.adds[i]] + c;
    for (int j = 0; j < N; ++j) x[j] = x[j] + load(a + j * W);
  }
  for (i = 0; i < part.minus_count; ++i) {
    const float* a = rows[part.minuses[i]] + c;
    for (int j = 0; j < N; ++j) x[j] = x[j] - load(a + j * W);
  }
  Vec total = Vec::load(row.total);
  for (int j = 0; j < N; ++j) {
    store(x[j], row.sum + c + j * W);
    total = total + x[j];
  }
  total.store(row.total);
}

inline void normalise(const float* row, int64_t width, Vec total, float eps, float* out) {
  const Vec mean = Vec::set(sum(total) / static_cast<float>(width));
  Vec squares = Vec::set(0.f);
  for_each_vector(0, width, [&](int64_t c, auto load, auto, int lanes) {
    const Vec d = keep_first(load(row + c) - mean, lanes, Vec::set(0.f));
    squares = fma(d, d, squares);
  });
  const Vec scale = Vec::set(1.f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps));
  for_each_vector(0, width, [&](int64_t c, auto load, auto store, int) {
    store((load(row + c) - mean) * scale, out + c);
  });
}

struct SumBuffers {
  const float** rows;
  PartRow* parts;
  explicit SumBuffers(const SumNorm& op) {
    using namespace vitsparse::cpu;
    const int64_t parts_size = op.part_count * static_cast<int64_t>(sizeof(PartRow));
    const int64_t rows_size = (op.count + op.part_count) * static_cast<int64_t>(sizeof(float*));
    parts = static_cast<PartRow*>(workspace_bytes(Purpose::kernel, parts_size + rows_size));
    rows = reinterpret_cast<const float**>(parts + op.part_count);
  }
  void begin_row(const SumNorm& op, int64_t image, int64_t r) const {
    for (int64_t s = 0; s < op.count; ++s) rows[s] = op.sources[s].row(image, r);
    for (int64_t p = 0; p < op.part_count; ++p) {
      const SumPart& part = op.parts[p];
      PartRow& row = parts[p];
      row.offset = part.offset ? part.offset + r * part.offset_stride : nullptr;
      row.normed = part.normed.data ? part.normed.row(image, r) : nullptr;
      row.sum = part.sum.data ? part.sum.row(image, r) : row.normed;
      Vec::set(0.f).store(row.total);
      rows[op.count + p] = row.sum;
    }
  }
};

inline void sum_norm_impl(const SumNorm& op, int64_t begin, int64_t end) {
  const SumBuffers buffers(op);
  for (int64_t task = begin; task < end; ++task) {
    buffers.begin_row(op, task / op.rows, task % op.rows);
    int64_t c = 0;
    for (; c + columns_together <= op.width; c += columns_together)
      for (int64_t p = 0; p < op.part_count; ++p)
        sum_columns<columns_together / Vec::W>(
            op.parts[p], buffers.rows, buffers.parts[p], c, [](const float* x) { return Vec::load(x); },
            [](Vec x, float* out) { x.store(out); });
    for_each_vector(c, op.width, [&](int64_t column, auto load, auto store, int) {
      for (int64_t p = 0; p < op.part_count; ++p)
        sum_columns<1>(op.parts[p], buffers.rows, buffers.parts[p], column, load, store);
    });
    for (int64_t p = 0; p < op.part_count; ++p) {
      const PartRow& row = buffers.parts[p];
      if (row.normed) normalise(row.sum, op.width, Vec::load(row.total), op.eps, row.normed);
    }
  }
}

}  // namespace
