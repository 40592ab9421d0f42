// Stands for kernels/cuda/wgmma.cuh: a warp of the four at a time, since each writes rows of its own.
#pragma once
#include <type_traits>

#include "kernels/cuda/ptx.cuh"

namespace emulator {

void fence_async_proxy();
void begin_products(float* sums, Site site);
void multiply_later(float* sums, const void* a, const void* b, Site site);
void end_products(bool half, float* sums, Site site);

}  // namespace emulator

namespace vitsparse::cuda {

using emulator::fence_async_proxy;

inline unsigned char* align_1024(unsigned char* pointer) {
  return pointer + (1024 - reinterpret_cast<uintptr_t>(pointer) % 1024) % 1024;
}

template <class T>
struct WarpGroup {
  using Sums = float[4][4][4];

  static void begin(Sums& sums, Site site = Site::here()) { emulator::begin_products(&sums[0][0][0], site); }
  static void multiply(Sums& sums, const void* a, const void* b, Site site = Site::here()) {
    emulator::multiply_later(&sums[0][0][0], a, b, site);
  }
  static void end(Sums& sums, Site site = Site::here()) {
    emulator::end_products(std::is_same_v<T, __half>, &sums[0][0][0], site);
  }
};

}  // namespace vitsparse::cuda
