// Feature levels of the CUDA kernels, as kernels/cpu has instruction sets: a template argument, not the architecture
// that is compiled for, so that the code for an older card runs, and is tested, on a newer one.
//   sm75  Turing: mma.m16n8k8 in float16, plain copies to shared memory, 64 KB of it
//   sm80  Ampere and later: mma.m16n8k16 in float16 and bfloat16, cp.async
//   sm90  Hopper: wgmma, compiled for 9.0a alone
// The level is part of a source file's name (linear_sm80.cu), and CMakeLists.txt compiles it for what has it.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace vitsparse::cuda {

enum class Level : int { sm75 = 75, sm80 = 80, sm90 = 90 };
enum class Dtype : int { float32, float16, bfloat16 };  // float32 is for checking: no tensor cores

// What a launch needs to know besides its operands.
struct Context {
  cudaStream_t stream;
  Level level;           // of the code to run; at most what the device has
  Dtype dtype;           // of all operands
  bool half_accumulate;  // add up products in float16 within a slice of k: twice as fast on GeForce cards
  int multiprocessors;
  int shared_limit;      // bytes of shared memory a block may have
};

// One matrix per image: row r of image b begins at data + b * image_stride + r * row_stride (in numbers). An image
// stride of 0: the same rows for each image. Columns lie densely.
struct View {
  void* data;
  int64_t image_stride, row_stride;
};

}  // namespace vitsparse::cuda
