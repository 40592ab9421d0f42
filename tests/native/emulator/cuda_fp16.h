// Stands for CUDA's header: float16 as two bytes, converted with rounding to the nearest even number.
#pragma once
#include "cuda_runtime.h"

namespace emulator {

inline float float_of_half(uint16_t bits) {
  // The exponent moves from 5 to 8 bits and is then 112 too small; the product also makes subnormal numbers right.
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
  uint32_t result = same_bits<uint32_t>(same_bits<float>(magnitude) * 0x1p112f);
  if (magnitude >= 0x0f800000u) result |= 0x7f800000u;  // infinity, NaN
  return same_bits<float>(result | static_cast<uint32_t>(bits & 0x8000) << 16);
}

inline uint16_t half_of_float(float x) {
  const uint32_t bits = same_bits<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000u) return 0x7fff;                                      // NaN, as CUDA has it
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00);       // from 65536 on
  if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 leaves the digits that remain, rounded, at the end
    const float shifted = same_bits<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (same_bits<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);  // a carry into the exponent is right, up to infinity
}

}  // namespace emulator

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float x) : bits(emulator::half_of_float(x)) {}
  operator float() const { return emulator::float_of_half(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __float2half(float x) { return x; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(uint16_t x) { return emulator::same_bits<__half>(x); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 x) { return {x.x, x.y}; }
inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline float __low2float(__half2 x) { return x.x; }
inline float __high2float(__half2 x) { return x.y; }
inline __half __hadd(__half x, __half y) { return float(x) + float(y); }
inline __half __hmul(__half x, __half y) { return float(x) * float(y); }
inline __half2 __hadd2(__half2 x, __half2 y) { return {__hadd(x.x, y.x), __hadd(x.y, y.y)}; }
inline __half2 __hmul2(__half2 x, __half2 y) { return {__hmul(x.x, y.x), __hmul(x.y, y.y)}; }
