// What a program for CUDA looks like to its checker; no CUDA in it, because programs are written and checked anywhere.
#pragma once
#include "kernels/common/program_validate.h"

namespace vitsparse::cuda {

// Numbers from row to row of a weight matrix: 16 bytes at least, so that rows are copied 16 bytes at a time.
VITSPARSE_HD constexpr int64_t padded_inputs(int64_t inputs) { return (inputs + 7) / 8 * 8; }
constexpr int64_t padded_size(int64_t outputs, int64_t inputs) { return outputs * padded_inputs(inputs); }

inline constexpr format::Target program_target{padded_size, true};

}  // namespace vitsparse::cuda
