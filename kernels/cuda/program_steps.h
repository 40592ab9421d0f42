// One step by a launch of its op's own kernel.
#pragma once
#include "kernels/cuda/program.h"
#include "kernels/cuda/program_operands.cuh"

namespace vitsparse::cuda {

// `host`: with the words in host memory.
cudaError_t launch_step(const ProgramRun& run, const ProgramBase& host, const format::Step& step, const Context& context);

}  // namespace vitsparse::cuda
