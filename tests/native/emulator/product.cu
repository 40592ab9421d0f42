// The tiles of kernels/cuda on the emulator, alone: out = a b^T or a b.

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tile.cuh"
#include "selftest.h"

namespace vitsparse::cuda {
namespace {

constexpr int slice = 64;

template <Level level, class T>
__device__ void add_half_sums(Sums<2>& sums, const T* a, const T* b) {
  uint32_t left[4], right[4], halves[2][2] = {};
  const int lane = threadIdx.x % 32;
  for (int k = 0; k < slice; k += 16) {
    Warp<level, T>::load_left(left, a + k, padded<T>(slice));
    load_matrices(right, b + (8 * (lane / 16) + lane % 8) * padded<T>(slice) + k + 8 * (lane / 8 % 2));
    const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
    TensorCore<level, T>::mma(halves[0], left, first);
    TensorCore<level, T>::mma(halves[1], left, second);
  }
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i)
      sums[n][i] += __half2float(__ushort_as_half(static_cast<unsigned short>(halves[n][i / 2] >> 16 * (i % 2))));
}

template <Level level, class T, bool by_rows>
__global__ void product_kernel(ProductParams p) {
  constexpr int stride = padded<T>(slice);
  T* const a = reinterpret_cast<T*>(shared_memory());
  T* const b = a + 64 * stride;
  const int warp = threadIdx.x / 32;
  Sums<2> sums = {};
  const auto row_of = [](const View& view, int row, int first, int limit) {
    return row < limit ? static_cast<const T*>(view.data) + row * view.row_stride + first : nullptr;
  };
  for (int k = 0; k < p.depth; k += slice) {
    load_tile<level>(a, stride, 64, slice, p.depth - k, p.aligned, [&](int r) { return row_of(p.a, r, k, p.rows); });
    if (by_rows)
      load_tile<level>(b, stride, slice, 16, p.columns, p.aligned, [&](int r) { return row_of(p.b, k + r, 0, p.depth); });
    else
      load_tile<level>(b, stride, 16, slice, p.depth - k, p.aligned, [&](int r) { return row_of(p.b, r, k, p.columns); });
    commit_copies<level>();
    wait_copies<level, 0>();
    __syncthreads();
    const T* const rows = a + 16 * warp * stride;
    if constexpr (std::is_same_v<T, __half> && !by_rows) {
      if (p.half_sums) add_half_sums<level, T>(sums, rows, b);
    }
    for (int i = p.half_sums ? slice : 0; i < slice; i += 16)
      Warp<level, T>::template multiply<by_rows, 2>(sums, rows + i, stride, by_rows ? b + i * stride : b + i, stride);
    __syncthreads();
  }
  for (int n = 0; n < 2; ++n)
    for_each_of_tile(n, [&](int row, int column, int i) {
      row += 16 * warp;
      if (row < p.rows && column < p.columns)
        static_cast<float*>(p.out.data)[row * p.out.row_stride + column] = sums[n][i];
    });
}

template <Level level, class T>
cudaError_t run(const ProductParams& params, bool by_rows, const Context& context) {
  const int bytes = (64 + 64) * padded<T>(slice) * static_cast<int>(sizeof(T));
  const auto kernel = by_rows ? product_kernel<level, T, true> : product_kernel<level, T, false>;
  return launch(kernel, params, {1, 128, bytes}, context);
}

}  // namespace

cudaError_t product(const ProductParams& params, bool by_rows, const Context& context) {
  switch (context.dtype) {
    case Dtype::float32: return run<Level::sm75, float>(params, by_rows, context);
    case Dtype::bfloat16: return run<Level::sm80, __nv_bfloat16>(params, by_rows, context);
    default: break;
  }
  if (context.level == Level::sm75) return run<Level::sm75, __half>(params, by_rows, context);
  return run<Level::sm80, __half>(params, by_rows, context);
}

}  // namespace vitsparse::cuda
