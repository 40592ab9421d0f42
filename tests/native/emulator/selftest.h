// The kernels that the emulator is tested with.
#pragma once
#include <string>

#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

// out = a b^T (by_rows: a b) in one block of 4 warps: up to 64 rows, 16 columns, any depth; ragged edges are masked.
struct ProductParams {
  View a, b, out;  // [rows, depth]; [columns, depth] or [depth, columns]; float32 [rows, columns]
  int rows, columns, depth;
  bool aligned, half_sums;
};
cudaError_t product(const ProductParams& params, bool by_rows, const Context& context);

struct MistakeParams {
  const float* in;    // [blocks][128]
  float* out;         // likewise
  uint32_t* counter;  // [1 + blocks * 128], zeros
  int zero;
};
// The kernel called `name`; cudaErrorInvalidValue: there is none.
cudaError_t mistake(const std::string& name, const MistakeParams& params, int blocks, int shared_bytes,
                    const Context& context);

}  // namespace vitsparse::cuda
