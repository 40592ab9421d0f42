// apply_pattern: which level's code.
#include "kernels/cuda/apply_pattern.h"

namespace vitsparse::cuda {

cudaError_t apply_pattern_sm75(const ApplyPatternParams& params, const Context& context);
cudaError_t apply_pattern_sm80(const ApplyPatternParams& params, const Context& context);

cudaError_t apply_pattern(const ApplyPatternParams& params, const Context& context) {
  const bool old = context.level == Level::sm75 || context.dtype == Dtype::float32;
  return (old ? apply_pattern_sm75 : apply_pattern_sm80)(params, context);
}

}  // namespace vitsparse::cuda
