// Conversions: kernels read and write T (float, __half, __nv_bfloat16) and compute in float.
#pragma once
#include "kernels/cuda/ptx.cuh"

namespace vitsparse::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// Numbers in the 16 bytes that one thread moves at once.
template <class T>
constexpr int per_16_bytes = 16 / static_cast<int>(sizeof(T));

// The exact GELU, x Phi(x), within 3e-7 (or that times |x|): max(x, 0) - |x| Phi(-|x|), where log2 Phi(-a) is a polynomial
// of degree 6, fitted so that what a Phi(-a) is off by is least. Half the instructions of erff(), and no branch.
__device__ __forceinline__ float gelu(float x) {
  const float a = fminf(fabsf(x), 14.f);  // beyond, the second term is 0
  float log = 3.30927905e-5f;
  log = log * a - 7.69219478e-4f;
  log = log * a + 8.08071531e-3f;
  log = log * a - 5.34121022e-2f;
  log = log * a - 4.58770961e-1f;
  log = log * a - 1.15120173f;
  log = log * a - 9.99993086e-1f;
  return 0.5f * (x + fabsf(x)) - a * exp2_fast(log);
}

}  // namespace vitsparse::cuda
