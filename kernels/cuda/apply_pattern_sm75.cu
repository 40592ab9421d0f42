// apply_pattern at level sm75, and float32 at every level.
#include "kernels/cuda/apply_pattern.cuh"
#include "kernels/cuda/launch.cuh"

namespace vitsparse::cuda {

cudaError_t apply_pattern_sm75(const ApplyPatternParams& params, const Context& context) {
  const auto run = [&](auto kernel, int shared) {
    return launch(kernel, params, {apply_pattern_tasks(params), 256, shared}, context);
  };
  if (context.dtype == Dtype::float32) return run(apply_pattern_kernel<Level::sm75, float>, apply_pattern_shared<float>());
  return run(apply_pattern_kernel<Level::sm75, __half>, apply_pattern_shared<__half>());
}

}  // namespace vitsparse::cuda
