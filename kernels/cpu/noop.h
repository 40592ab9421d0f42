// The living template of a CPU kernel: raw memory in, raw memory out; it knows neither torch nor threads.
#pragma once

#include "kernels/common/noop.h"

namespace vitsparse::cpu {

// Copies elements begin to end. The caller splits the range over threads. Instances: float, double.
template <typename T>
void noop(const NoopParams<T>& params, int64_t begin, int64_t end);

}  // namespace vitsparse::cpu
