// The instructions that C++ has no words for, each behind a function; nothing else in kernels/cuda contains assembly.
// `level` says which form is used; a form is only instantiated in files compiled for architectures that have it.
#pragma once
#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- matrix products of a warp: c[16 x 8] += a[16 x 16] b[16 x 8] ----
// With g = lane / 4 and t = lane % 4 a lane holds
//   c[0..3]  (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//   a[0..3]  two numbers each, from column 2t on: row g, row g+8, row g from column 2t+8 on, row g+8 from there
//   b[0..1]  two numbers each: rows 2t, 2t+1 of column g, and rows 2t+8, 2t+9
template <Level level, class T>
struct TensorCore;

template <>
struct TensorCore<Level::sm75, __half> {
  __device__ static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    half_k(c, a[0], a[1], b[0]);
    half_k(c, a[2], a[3], b[1]);
  }
  __device__ static void mma(uint32_t (&c)[2], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    half_k(c, a[0], a[1], b[0]);
    half_k(c, a[2], a[3], b[1]);
  }

 private:
  __device__ static void half_k(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b));
  }
  __device__ static void half_k(uint32_t (&c)[2], uint32_t a0, uint32_t a1, uint32_t b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3}, {%4}, {%0, %1};"
                 : "+r"(c[0]), "+r"(c[1]) : "r"(a0), "r"(a1), "r"(b));
  }
};

template <>
struct TensorCore<Level::sm80, __half> {
  __device__ static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  // Sums in float16, two numbers in each of c[0] (row g) and c[1] (row g+8).
  __device__ static void mma(uint32_t (&c)[2], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
                 : "+r"(c[0]), "+r"(c[1])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

template <>
struct TensorCore<Level::sm80, __nv_bfloat16> {
  __device__ static void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

// Four 8 x 8 matrices of 16-bit numbers from shared memory. Lane l names the 16 bytes of row l % 8 of matrix l / 8; lane
// (g, t) receives numbers 2t, 2t+1 of row g of each matrix; transposed: of column g.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

// ---- copies from global to shared memory ----
// 16 bytes, both addresses multiples of 16; `bytes` (0 to 16) are read and the rest becomes zero. On sm75 the copy is
// done at once; from sm80 on it is asynchronous: commit_copies() closes a group, and wait_copies<n>() waits until at most
// n groups are open. Either way a __syncthreads() must follow before others read.
template <Level level>
__device__ __forceinline__ void copy_16(void* shared, const void* global, int bytes = 16) {
  if constexpr (level == Level::sm75) {
    uint4 value = make_uint4(0, 0, 0, 0);
    if (bytes == 16) {
      value = *static_cast<const uint4*>(global);
    } else {
      const auto* from = static_cast<const unsigned short*>(global);
      const auto number = [&](int i) { return 2 * i < bytes ? static_cast<uint32_t>(from[i]) : 0u; };
      value = make_uint4(number(0) | number(1) << 16, number(2) | number(3) << 16, number(4) | number(5) << 16,
                         number(6) | number(7) << 16);
    }
    *static_cast<uint4*>(shared) = value;
  } else {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
  }
}
template <Level level>
__device__ __forceinline__ void commit_copies() {
  if constexpr (level != Level::sm75) asm volatile("cp.async.commit_group;" ::: "memory");
}
template <Level level, int open>
__device__ __forceinline__ void wait_copies() {
  if constexpr (level != Level::sm75) asm volatile("cp.async.wait_group %0;" :: "n"(open) : "memory");
}

// ---- arithmetic ----
__device__ __forceinline__ float exp2_fast(float x) {  // 2^x, relative error 2^-22; 2^-infinity is 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- memory that all blocks of a grid share ----
// What was written before add_release (by this thread, and by its block before a __syncthreads()) is seen by whoever
// load_acquire shows the new value.
__device__ __forceinline__ void add_release(uint32_t* counter, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" :: "l"(counter), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* counter) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

}  // namespace vitsparse::cuda
