// The kernels of each instruction set. The functions declared in linear.h, attention.h, ... choose among them.
#pragma once
#include "kernels/cpu/apply_pattern.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/sum_norm.h"

#define VITSPARSE_LEVEL(level)                                                \
  namespace level {                                                           \
  int64_t linear_tasks(const Linear& op);                                     \
  void linear(const Linear& op, int64_t begin, int64_t end);                  \
  void sum_norm(const SumNorm& op, int64_t begin, int64_t end);               \
  void attention(const Attention& op, int64_t begin, int64_t end);            \
  void apply_pattern(const ApplyPattern& op, int64_t begin, int64_t end);     \
  }

namespace vitsparse::cpu {
VITSPARSE_LEVEL(scalar)
#if defined(__x86_64__)
VITSPARSE_LEVEL(avx2)
VITSPARSE_LEVEL(avx512)
#endif
}  // namespace vitsparse::cpu

#undef VITSPARSE_LEVEL

// Returns `call` of the level in use.
#if defined(__x86_64__)
#define VITSPARSE_DISPATCH(call)                             \
  switch (::vitsparse::cpu::current_isa()) {                 \
    case ::vitsparse::cpu::Isa::avx512: return avx512::call; \
    case ::vitsparse::cpu::Isa::avx2: return avx2::call;     \
    default: return scalar::call;                            \
  }
#else
#define VITSPARSE_DISPATCH(call) return scalar::call
#endif
