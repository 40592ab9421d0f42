// How much work an operation is, for the decision whether a second thread is worth starting.
#pragma once
#include "kernels/cpu/apply_pattern.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/sum_norm.h"

namespace vitsparse::cpu {

// Floating-point operations below which one thread is done before a second has started (about 10 us of AVX-512).
constexpr double worth_a_thread = 2e6;

inline double flops(const Linear& op) { return 2. * static_cast<double>(op.images * op.rows * op.inputs) * op.outputs; }
inline double flops(const Attention& op) {  // 60: an exponential and what else softmax does for a score
  return static_cast<double>(op.images * op.heads * op.queries) * op.keys * (4. * op.head_dim + 60.);
}
inline double flops(const ApplyPattern& op) {
  return 2. * static_cast<double>(op.images * op.heads * op.queries) * op.keys * op.head_dim;
}
inline double flops(const SumNorm& op) {  // bound by memory: an element read or written takes as long as 16 operations
  return 16. * static_cast<double>(op.images * op.rows * op.width) * (op.count + 2);
}

inline int64_t tasks(const Linear& op) { return linear_tasks(op); }
inline int64_t tasks(const Attention& op) { return attention_tasks(op); }
inline int64_t tasks(const ApplyPattern& op) { return apply_pattern_tasks(op); }
inline int64_t tasks(const SumNorm& op) { return sum_norm_tasks(op); }

}  // namespace vitsparse::cpu
