// One step by a launch of its op's own kernel, or of several.
#pragma once
#include "kernels/cuda/program.h"
#include "kernels/cuda/program_operands.cuh"

namespace vitsparse::cuda {

// `host`: with the words in host memory.
cudaError_t launch_step(const ProgramRun& run, const ProgramBase& host, const format::Step& step, const Context& context);

// A step that joins several ops (MLP, QKV_ATTENTION, NORM_LINEAR): by the kernel for all of them where that suits, else
// op by op, with what lies between them in `scratch`: joined_scratch() numbers per image. Other steps need none.
int64_t joined_scratch(const ProgramBase& host, const format::Step& step, const Context& context);
cudaError_t launch_joined(const ProgramBase& host, const format::Step& step, void* scratch, const Context& context);

}  // namespace vitsparse::cuda
