// Stands for CUDA's header: the words of the language and the functions that device code uses.
#pragma once
#include <math.h>

#include <algorithm>
#include <cstring>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define threadIdx (::emulator::current->index)
#define blockIdx (::emulator::current->block)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)
constexpr int warpSize = 32;

// ---- vectors; the alignment is checked at every access (faults.cpp) ----
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- arithmetic ----
using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

namespace emulator {
template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
}  // namespace emulator
inline unsigned __float_as_uint(float x) { return emulator::same_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulator::same_bits<float>(x); }
inline int __float_as_int(float x) { return emulator::same_bits<int>(x); }
inline float __int_as_float(int x) { return emulator::same_bits<float>(x); }

// ---- threads that meet ----
inline void __syncthreads(emulator::Site site = emulator::Site::here()) { emulator::barrier(site); }
[[noreturn]] inline void __trap() { emulator::fault("__trap()"); }

namespace emulator {

constexpr unsigned all_lanes = 0xffffffffu;

struct Exchange {
  uint64_t value;
  int source;  // the lane whose value is wanted
};
void exchange(void* const (&lanes)[32]);
void vote(void* const (&lanes)[32]);

inline void require_all_lanes(unsigned mask, Site site) {
  if (mask != all_lanes) fault("%s:%d: only warps of 32 threads with mask 0xffffffff are emulated", site.file, site.line);
}

template <class T>
T exchanged(T value, int source, unsigned mask, const char* name, Site site) {
  static_assert(sizeof(T) <= 8);
  require_all_lanes(mask, site);
  Exchange operand{0, source};
  std::memcpy(&operand.value, &value, sizeof(T));
  together(exchange, name, &operand, site);
  std::memcpy(&value, &operand.value, sizeof(T));
  return value;
}

inline int lane() { return static_cast<int>(current->index.x % 32); }

// The lane, or the own one where it lies outside the own segment of `width` lanes.
inline int within(int source, int width) { return source / width == lane() / width && source >= 0 ? source : lane(); }

}  // namespace emulator

inline void __syncwarp(unsigned mask = emulator::all_lanes, emulator::Site site = emulator::Site::here()) {
  emulator::require_all_lanes(mask, site);
  emulator::together(emulator::meet, "__syncwarp", nullptr, site);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulator::Site site = emulator::Site::here()) {
  const int first = emulator::lane() / width * width;
  return emulator::exchanged(value, first + (source & (width - 1)), mask, "__shfl_sync", site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, emulator::Site site = emulator::Site::here()) {
  return emulator::exchanged(value, emulator::within(emulator::lane() ^ flip, width), mask, "__shfl_xor_sync", site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32, emulator::Site site = emulator::Site::here()) {
  return emulator::exchanged(value, emulator::within(emulator::lane() + by, width), mask, "__shfl_down_sync", site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = 32, emulator::Site site = emulator::Site::here()) {
  return emulator::exchanged(value, emulator::within(emulator::lane() - by, width), mask, "__shfl_up_sync", site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site::here()) {
  emulator::require_all_lanes(mask, site);
  uint64_t operand = predicate != 0;
  emulator::together(emulator::vote, "__ballot_sync", &operand, site);
  return static_cast<unsigned>(operand);
}
inline int __any_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site::here()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site::here()) {
  return __ballot_sync(mask, predicate, site) == emulator::all_lanes;
}
