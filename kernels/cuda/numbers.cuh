// Conversions: kernels read and write T (float, __half, __nv_bfloat16) and compute in float.
#pragma once
#include "kernels/cuda/level.h"

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

// The exact GELU, x Phi(x).
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }

}  // namespace vitsparse::cuda
