// program_kernel at level sm75, and float32 at every level.
#include "kernels/cuda/program_launch.cuh"

namespace vitsparse::cuda {

ProgramStatus launch_waves_sm75(const ProgramRun& run, const ProgramBase& base, bool persistent, const Context& context) {
  if (context.dtype == Dtype::float32)
    return ProgramLaunches<Level::sm75, float>(run, base, persistent, context).launch_all();
  return ProgramLaunches<Level::sm75, __half>(run, base, persistent, context).launch_all();
}

}  // namespace vitsparse::cuda
