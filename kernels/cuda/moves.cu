// One code for all levels.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/moves.cuh"

namespace vitsparse::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(256) patches_kernel(PatchesParams params) { patches_task<T>(params, blockIdx.x); }
template <class T>
__global__ void __launch_bounds__(256) fill_kernel(FillParams params) { fill_task<T>(params, blockIdx.x); }
template <class T>
__global__ void __launch_bounds__(256) mean_rows_kernel(MeanRowsParams params) { mean_rows_task<T>(params, blockIdx.x); }

// Calls run(T{}) for the dtype of the context.
template <class Run>
cudaError_t for_dtype(const Context& context, Run run) {
  switch (context.dtype) {
    case Dtype::float16: return run(__half{});
    case Dtype::bfloat16: return run(__nv_bfloat16{});
    default: return run(float{});
  }
}

}  // namespace

cudaError_t patches(const PatchesParams& params, const Context& context) {
  return for_dtype(context, [&](auto number) {
    using T = decltype(number);
    return launch(patches_kernel<T>, params, {patches_tasks<T>(params), 256, 0}, context);
  });
}
cudaError_t fill(const FillParams& params, const Context& context) {
  return for_dtype(context, [&](auto number) {
    using T = decltype(number);
    return launch(fill_kernel<T>, params, {fill_tasks<T>(params), 256, 0}, context);
  });
}
cudaError_t mean_rows(const MeanRowsParams& params, const Context& context) {
  return for_dtype(context, [&](auto number) {
    using T = decltype(number);
    return launch(mean_rows_kernel<T>, params, {mean_rows_tasks(params), 256, mean_rows_shared(256)}, context);
  });
}

}  // namespace vitsparse::cuda
