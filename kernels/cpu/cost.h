// How much work an operation is, and into how many tasks it falls: what decides which thread does what.
#pragma once
#include "kernels/cpu/apply_pattern.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/moves.h"
#include "kernels/cpu/sum_norm.h"

namespace vitsparse::cpu {

// Floating-point operations below which one thread is done before a second has started (about 10 us of AVX-512).
constexpr double worth_a_thread = 2e6;

// An element that is read or written takes as long as this many operations: these steps are bound by memory.
constexpr double flops_per_element = 16.;

inline double flops(const Linear& op) { return 2. * static_cast<double>(op.images * op.rows * op.inputs) * op.outputs; }
inline double flops(const Attention& op) {  // 60: an exponential and what else softmax does for a score
  return static_cast<double>(op.images * op.heads * op.queries) * op.keys * (4. * op.head_dim + 60.);
}
inline double flops(const ApplyPattern& op) {
  return 2. * static_cast<double>(op.images * op.heads * op.queries) * op.keys * op.head_dim;
}
// A row is read from each source and written for each part; the terms of a part then come from the L1 cache.
inline double sum_norm_flops(int64_t elements, int64_t sources, int64_t parts, int64_t terms) {
  return static_cast<double>(elements) * (flops_per_element * static_cast<double>(sources + 2 * parts) + 4. * terms);
}
inline double flops(const SumNorm& op) {
  int64_t terms = 0;
  for (int64_t i = 0; i < op.part_count; ++i) terms += op.parts[i].add_count + op.parts[i].minus_count;
  return sum_norm_flops(op.images * op.rows * op.width, op.count, op.part_count, terms);
}
inline double flops(const CutPatches& op) {
  return flops_per_element * static_cast<double>(op.images * op.rows * op.channels) * (op.patch * op.patch);
}
inline double flops(const MeanRows& op) {
  return flops_per_element * static_cast<double>(op.images * op.rows * op.width);
}
inline double flops(const Fill& op) { return flops_per_element * static_cast<double>(op.images * op.rows * op.width); }

inline int64_t tasks(const Linear& op) { return linear_tasks(op); }
inline int64_t tasks(const Attention& op) { return attention_tasks(op); }
inline int64_t tasks(const ApplyPattern& op) { return apply_pattern_tasks(op); }
inline int64_t tasks(const SumNorm& op) { return sum_norm_tasks(op); }
inline int64_t tasks(const CutPatches& op) { return op.images * op.rows; }
inline int64_t tasks(const MeanRows& op) { return op.images; }
inline int64_t tasks(const Fill& op) { return op.images; }

}  // namespace vitsparse::cpu
