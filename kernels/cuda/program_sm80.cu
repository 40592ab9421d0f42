// program_kernel at level sm80.
#include "kernels/cuda/program_launch.cuh"

namespace vitsparse::cuda {

ProgramStatus launch_waves_sm80(const ProgramRun& run, const ProgramBase& base, bool persistent, const Context& context) {
  if (context.dtype == Dtype::bfloat16)
    return ProgramLaunches<Level::sm80, __nv_bfloat16>(run, base, persistent, context).launch_all();
  return ProgramLaunches<Level::sm80, __half>(run, base, persistent, context).launch_all();
}

}  // namespace vitsparse::cuda
