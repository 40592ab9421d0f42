// What the no-op computes, shared by its CPU and CUDA kernels: out[i] = in[i] for i < count.
#pragma once

#include <cstdint>

namespace vitsparse {

// One struct instead of a list of arguments: a kernel that gains a parameter changes here and in its body, and no
// binding can swap two pointers unnoticed.
template <typename T>
struct NoopParams {
  const T* in;
  T* out;
  int64_t count;
};

}  // namespace vitsparse
