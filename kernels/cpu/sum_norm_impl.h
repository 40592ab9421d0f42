// Body of sum_norm for one instruction set; include after one of the vec_*.h files.
//
// The sources are read once; mean and variance are taken from the summed row, which is then in the L1 cache, in two
// passes: E[r^2] - E[r]^2 would cancel where the mean is large.
#pragma once
#include "kernels/cpu/sum_norm.h"

namespace {

using vitsparse::cpu::SumNorm;

// Calls body(column, load, store, lanes) for the vectors of a row from column c on; all lanes but in the last vector.
template <class Body>
inline void for_each_vector(int64_t c, int64_t width, const Body& body) {
  for (; c + Vec::W <= width; c += Vec::W)
    body(c, [](const float* p) { return Vec::load(p); }, [](Vec x, float* p) { x.store(p); }, Vec::W);
  const int tail = static_cast<int>(width - c);
  if (tail)
    body(c, [tail](const float* p) { return Vec::load(p, tail); }, [tail](Vec x, float* p) { x.store(p, tail); }, tail);
}

inline Vec sum_sources(const SumNorm& op, int64_t image, int64_t r, float* out) {
  const float* offset = op.offset ? op.offset + r * op.width : nullptr;
  Vec total = Vec::set(0.f);
  int64_t first = 0;
  for (; first + 4 * Vec::W <= op.width; first += 4 * Vec::W) {  // four vectors at once, to find each row once for four
    Vec x[4];
    for (int j = 0; j < 4; ++j) x[j] = offset ? Vec::load(offset + first + j * Vec::W) : Vec::set(0.f);
    for (int64_t s = 0; s < op.count; ++s) {
      const float* row = op.sources[s].row(image, r) + first;
      for (int j = 0; j < 4; ++j) x[j] = x[j] + Vec::load(row + j * Vec::W);
    }
    for (int j = 0; j < 4; ++j) x[j].store(out + first + j * Vec::W);
    total = total + ((x[0] + x[1]) + (x[2] + x[3]));
  }
  for_each_vector(first, op.width, [&](int64_t c, auto load, auto store, int) {
    Vec x = offset ? load(offset + c) : Vec::set(0.f);
    for (int64_t s = 0; s < op.count; ++s) x = x + load(op.sources[s].row(image, r) + c);
    store(x, out + c);
    total = total + x;
  });
  return total;
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

inline void sum_norm_impl(const SumNorm& op, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / op.rows, r = task % op.rows;
    float* normed = op.normed.data ? op.normed.row(image, r) : nullptr;
    float* row = op.sum.data ? op.sum.row(image, r) : normed;
    const Vec total = sum_sources(op, image, r, row);
    if (op.normed.data) normalise(row, op.width, total, op.eps, normed);
  }
}

}  // namespace
