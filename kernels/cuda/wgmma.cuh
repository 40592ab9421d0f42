// The warpgroup instructions of Hopper, for compute capability 9.0a alone: four warps multiply tiles that lie in shared
// memory. Besides ptx.cuh the only file with assembly.
//
// A tile is rows of 128 bytes (64 numbers of 16 bits along k), one after the other from a multiple of 1024 bytes on, and
// chunk c of row r (16 bytes) lies at chunk c ^ (r % 8) of that row: the 128-byte swizzle. The 64-bit descriptor of such
// a tile, all numbers in units of 16 bytes: bits 0-13 its address, 16-29 unused in this layout (1), 32-45 from one group of
// eight rows to the next (1024 bytes), 49-51 zero (the tile begins at a multiple of 1024), 62-63 the swizzle (1). Since
// the hardware swizzles addresses, not tiles, the numbers from k on, k a multiple of 16, are the tile 2 k bytes further.
//   PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions": matrix descriptor, register fragments
//
// The order: what threads have written to shared memory, fence_async_proxy() by each of them, __syncthreads(); then, by
// all 128 threads, begin(sums), multiply() as often as wanted, end(sums). Between begin() and end() nobody touches the sums.
#pragma once
#include <type_traits>

#include "kernels/cuda/ptx.cuh"

namespace vitsparse::cuda {

// Makes this thread's earlier writes to shared memory visible to the instructions below.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The first multiple of 1024 bytes in shared memory from `pointer` on.
__device__ __forceinline__ unsigned char* align_1024(unsigned char* pointer) {
  return pointer + (1024 - shared_address(pointer) % 1024) % 1024;
}

#define VITSPARSE_4(x) "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
#define VITSPARSE_16(x) VITSPARSE_4(x[0]), VITSPARSE_4(x[1]), VITSPARSE_4(x[2]), VITSPARSE_4(x[3])
#define VITSPARSE_SUMS VITSPARSE_16(sums[0]), VITSPARSE_16(sums[1]), VITSPARSE_16(sums[2]), VITSPARSE_16(sums[3])
#define VITSPARSE_MMA(type)                                                                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " "                                  \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
               "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
               "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
               "%59, %60, %61, %62, %63}, %64, %65, 1, 1, 1, 0, 0;"                                              \
               : VITSPARSE_SUMS : "l"(descriptor(a)), "l"(descriptor(b)))

// sums += 64 rows of a times 128 rows of b, 16 numbers of each. Warp w of the four holds rows 16 w to 16 w + 15: sums[i][j]
// is the [16 x 8] tile (see TensorCore) of columns 32 i + 8 j on.
template <class T>
struct WarpGroup {
  using Sums = float[4][4][4];

  __device__ __forceinline__ static void begin(Sums& sums) {
    asm volatile("wgmma.fence.sync.aligned;" : VITSPARSE_SUMS :: "memory");
  }
  __device__ __forceinline__ static void multiply(Sums& sums, const void* a, const void* b) {
    if constexpr (std::is_same_v<T, __half>) {
      VITSPARSE_MMA("f16");
    } else {
      VITSPARSE_MMA("bf16");
    }
  }
  __device__ __forceinline__ static void end(Sums& sums) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" : VITSPARSE_SUMS :: "memory");
  }

 private:
  __device__ __forceinline__ static uint64_t descriptor(const void* tile) {
    return (shared_address(tile) & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
  }
};

#undef VITSPARSE_4
#undef VITSPARSE_16
#undef VITSPARSE_SUMS
#undef VITSPARSE_MMA

}  // namespace vitsparse::cuda
