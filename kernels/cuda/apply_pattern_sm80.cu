// apply_pattern at level sm80.
#include "kernels/cuda/apply_pattern.cuh"
#include "kernels/cuda/launch.cuh"

namespace vitsparse::cuda {

cudaError_t apply_pattern_sm80(const ApplyPatternParams& params, const Context& context) {
  const auto run = [&](auto kernel, int shared) {
    return launch(kernel, params, {apply_pattern_tasks(params), 256, shared}, context);
  };
  if (context.dtype == Dtype::bfloat16) return run(apply_pattern_kernel<Level::sm80, __nv_bfloat16>, apply_pattern_shared<__nv_bfloat16>());
  return run(apply_pattern_kernel<Level::sm80, __half>, apply_pattern_shared<__half>());
}

}  // namespace vitsparse::cuda
