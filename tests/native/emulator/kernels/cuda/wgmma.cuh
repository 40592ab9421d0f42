// Stands for kernels/cuda/wgmma.cuh: the same functions, with the same layout. Products are computed when they are waited
// for and not before, from what shared memory then holds. That fences are where they must be is not checked.
#pragma once
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/ptx.cuh"

namespace emulator {

using GroupSums = float[4][4][4];

struct Product {
  GroupSums* sums;
  const unsigned char *a, *b;  // from number k on of the first rows
};

// Those of the calling thread that nobody has waited for.
inline std::vector<Product>& products() {
  static thread_local std::unordered_map<const Thread*, std::vector<Product>> of_threads;
  return of_threads[current];
}

// Two numbers of row `row`, from `column` (even) on: the hardware swizzles the address.
inline uint32_t swizzled(const unsigned char* rows, int row, int column) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(rows) + 128 * row + 2 * column;
  uint32_t numbers;
  std::memcpy(&numbers, reinterpret_cast<const void*>(address ^ (address >> 7 & 7) << 4), 4);
  return numbers;
}

// The products of one warp, as sixteen mma of 16 x 8.
template <auto mma>
void multiply_group(void* const (&lanes)[32]) {
  for (const Product& product : *static_cast<std::vector<Product>*>(lanes[0])) {
    const auto index = &product - static_cast<std::vector<Product>*>(lanes[0])->data();
    for (int column = 0; column < 128; column += 8) {
      uint32_t a[32][4], b[32][2];
      Mma operands[32];
      void* pointers[32];
      for (int lane = 0; lane < 32; ++lane) {
        const Product& own = (*static_cast<std::vector<Product>*>(lanes[lane]))[index];
        const int g = lane / 4, t = 2 * (lane % 4);
        for (int i = 0; i < 4; ++i) a[lane][i] = swizzled(own.a, g + 8 * (i % 2), t + 8 * (i / 2));
        for (int i = 0; i < 2; ++i) b[lane][i] = swizzled(own.b, column + g, t + 8 * i);
        operands[lane] = {(*own.sums)[column / 32][column / 8 % 4], a[lane], b[lane]};
        pointers[lane] = &operands[lane];
      }
      mma(pointers);
    }
  }
}

}  // namespace emulator

namespace vitsparse::cuda {

inline void fence_async_proxy() {}

inline unsigned char* align_1024(unsigned char* pointer) {
  return pointer + (1024 - reinterpret_cast<uintptr_t>(pointer) % 1024) % 1024;
}

template <class T>
struct WarpGroup {
  using Sums = float[4][4][4];

  static void begin(Sums&) {}
  static void multiply(Sums& sums, const void* a, const void* b, Site site = Site::here()) {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const auto* rows = static_cast<const unsigned char*>(a) + 16 * warp * 128;
    const auto* columns = static_cast<const unsigned char*>(b);
    for (const auto* tile : {static_cast<const unsigned char*>(a), columns})
      if (reinterpret_cast<uintptr_t>(tile) % 1024 >= 128) emulator::fault("%s:%d: a tile that is not aligned", site.file, site.line);
    emulator::require_shared(rows, 16 * 128 - 96, 32, "WarpGroup::multiply", site);
    emulator::require_shared(columns, 128 * 128 - 96, 32, "WarpGroup::multiply", site);
    const auto note = [](const unsigned char* row) {  // 16 numbers are two chunks
      for (int chunk = 0; chunk < 2; ++chunk) {
        const uintptr_t address = reinterpret_cast<uintptr_t>(row) + 16 * chunk;
        emulator::read_shared(reinterpret_cast<const void*>(address ^ (address >> 7 & 7) << 4), 16);
      }
    };
    note(rows + lane % 16 * 128);
    for (int row = lane; row < 128; row += 32) note(columns + row * 128);
    emulator::products().push_back({&sums, rows, columns});
  }
  static void end(Sums&, Site site = Site::here()) {
    constexpr auto operation = std::is_same_v<T, __half> ? emulator::multiply_group<emulator::mma_half_k16>
                                                         : emulator::multiply_group<emulator::mma_bfloat16_k16>;
    emulator::together(operation, "WarpGroup::end", &emulator::products(), site);
    emulator::products().clear();
  }
};

}  // namespace vitsparse::cuda
