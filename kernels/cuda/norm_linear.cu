// norm_linear: whether a block can do it, and which level's code.
#include "kernels/cuda/norm_linear.h"

#include "kernels/cuda/norm_linear.cuh"

namespace vitsparse::cuda {

cudaError_t norm_linear_sm75(const NormLinearParams& params, const Context& context);
cudaError_t norm_linear_sm80(const NormLinearParams& params, const Context& context);

bool norm_linear_fits(const NormLinearParams& params, const Context& context) {
  const int shared = context.dtype == Dtype::float32  ? norm_linear_shared<Level::sm75, float>(params)
                     : context.level == Level::sm75 ? norm_linear_shared<Level::sm75, __half>(params)
                                                    : norm_linear_shared<Level::sm80, __half>(params);
  return shared <= context.shared_limit;
}

cudaError_t norm_linear(const NormLinearParams& params, const Context& context) {
  if (!norm_linear_fits(params, context)) return cudaErrorInvalidValue;
  const bool old = context.level == Level::sm75 || context.dtype == Dtype::float32;
  return (old ? norm_linear_sm75 : norm_linear_sm80)(params, context);
}

}  // namespace vitsparse::cuda
