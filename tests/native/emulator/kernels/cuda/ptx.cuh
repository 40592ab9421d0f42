// Stands for kernels/cuda/ptx.cuh: the same functions, with the same layouts, for emulated threads.
#pragma once
#include "kernels/cuda/level.h"

namespace emulator {

struct Mma {
  void* sums;  // float[4], or uint32_t[2] of two float16 each
  const uint32_t *a, *b;
};
void mma_half_k16(void* const (&lanes)[32]);
void mma_bfloat16_k16(void* const (&lanes)[32]);
void mma_half_sums_k8(void* const (&lanes)[32]);
void mma_half_sums_k16(void* const (&lanes)[32]);

struct Matrices {
  uint32_t* to;
  const void* row;
};
void load_matrices(void* const (&lanes)[32]);
void load_matrices_transposed(void* const (&lanes)[32]);

}  // namespace emulator

namespace vitsparse::cuda {

using emulator::Site;

__device__ inline unsigned char* shared_memory() { return emulator::shared(); }

template <Level level, class T>
struct TensorCore;

template <Level level>
struct TensorCore<level, __half> {
  static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
    emulator::Mma operand{c, a, b};
    emulator::together(emulator::mma_half_k16, "mma", &operand, site);
  }
  static void mma(uint32_t (&c)[2], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
    emulator::Mma operand{c, a, b};
    constexpr auto operation = level == Level::sm75 ? emulator::mma_half_sums_k8 : emulator::mma_half_sums_k16;
    emulator::together(operation, "mma with sums in float16", &operand, site);
  }
};

template <>
struct TensorCore<Level::sm80, __nv_bfloat16> {
  static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
    emulator::Mma operand{c, a, b};
    emulator::together(emulator::mma_bfloat16_k16, "mma", &operand, site);
  }
};

inline void load_matrices(uint32_t (&r)[4], const void* row, Site site = Site::here()) {
  emulator::require_shared(row, 16, 16, "load_matrices", site);
  emulator::read_shared(row, 16);
  emulator::Matrices operand{r, row};
  emulator::together(emulator::load_matrices, "load_matrices", &operand, site);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row, Site site = Site::here()) {
  emulator::require_shared(row, 16, 16, "load_matrices_transposed", site);
  emulator::read_shared(row, 16);
  emulator::Matrices operand{r, row};
  emulator::together(emulator::load_matrices_transposed, "load_matrices_transposed", &operand, site);
}

template <Level level>
inline void copy_16(void* shared, const void* global, int bytes = 16, Site site = Site::here()) {
  emulator::require_shared(shared, 16, 16, "copy_16", site);
  emulator::copy_later(shared, global, bytes, site);
  if constexpr (level == Level::sm75) {
    emulator::commit_copies();
    emulator::wait_for_copies(0);
  }
}
template <Level level>
inline void commit_copies() {
  if constexpr (level != Level::sm75) emulator::commit_copies();
}
template <Level level, int open>
inline void wait_copies() {
  if constexpr (level != Level::sm75) emulator::wait_for_copies(open);
}

inline float exp2_fast(float x) { return x < -126.f ? 0.f : exp2f(x); }

using emulator::add_release;
inline uint32_t load_acquire(const uint32_t* counter, Site site = Site::here()) {
  return emulator::load_acquire(counter, site);
}

}  // namespace vitsparse::cuda
