// Memory of a thread that kernels and programs reuse from call to call: grown when needed, never shrunk.
#pragma once
#include <cstdint>
#include <type_traits>

namespace vitsparse::cpu {

// Each purpose has memory of its own, because they are in use at the same time: a program holds its values, its
// schedule, and what a sum is made of, while its kernels ask for theirs.
enum class Purpose { kernel, program, schedule, counters, sources, parts, count };

// At least `bytes` bytes, 64-byte aligned, contents undefined; valid until this thread asks again for that purpose.
// Throws std::bad_alloc.
void* workspace_bytes(Purpose purpose, int64_t bytes);

inline float* workspace(Purpose purpose, int64_t floats) {
  return static_cast<float*>(workspace_bytes(purpose, floats * static_cast<int64_t>(sizeof(float))));
}
template <class T>
T* workspace_of(Purpose purpose, int64_t count) {
  static_assert(std::is_trivially_destructible_v<T>);
  return static_cast<T*>(workspace_bytes(purpose, count * static_cast<int64_t>(sizeof(T))));
}

constexpr int64_t aligned(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace vitsparse::cpu
