// Kernels with one mistake each, which the emulator has to find; and a few without.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "selftest.h"

namespace vitsparse::cuda {
namespace {

constexpr int threads = 128;

__device__ float* numbers() { return reinterpret_cast<float*>(shared_memory()); }

// ---- threads of a block: out = in, reversed ----

template <bool barrier>
__global__ void reverse(MistakeParams p) {
  numbers()[threadIdx.x] = p.in[threadIdx.x];
  if (barrier) __syncthreads();
  p.out[threadIdx.x] = numbers()[threads - 1 - threadIdx.x];
}

template <bool barrier>
__global__ void reverse_twice(MistakeParams p) {
  for (int i = 0; i < 2; ++i) {
    numbers()[threadIdx.x] = p.in[threadIdx.x] + i;
    __syncthreads();
    p.out[threadIdx.x] = numbers()[threads - 1 - threadIdx.x];
    if (barrier) __syncthreads();
  }
}

template <bool in_time>
__global__ void reverse_copied(MistakeParams p) {
  if (threadIdx.x < threads / 4) copy_16<Level::sm80>(numbers() + 4 * threadIdx.x, p.in + 4 * threadIdx.x);
  commit_copies<Level::sm80>();
  if (in_time) wait_copies<Level::sm80, 0>();
  __syncthreads();
  p.out[threadIdx.x] = numbers()[threads - 1 - threadIdx.x];
  __syncthreads();
  wait_copies<Level::sm80, 0>();
}

__global__ void copy_without_wait(MistakeParams p) {
  if (threadIdx.x < threads / 4) copy_16<Level::sm80>(numbers() + 4 * threadIdx.x, p.in + 4 * threadIdx.x);
  commit_copies<Level::sm80>();
}

template <bool synchronised>
__global__ void swap_in_warp(MistakeParams p) {
  numbers()[threadIdx.x] = p.in[threadIdx.x];
  if (synchronised) __syncwarp();
  p.out[threadIdx.x] = numbers()[threadIdx.x ^ 1];
}

__global__ void two_barriers(MistakeParams) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void absent_from_barrier(MistakeParams p) {
  if (threadIdx.x < 32) __syncthreads();
  while (load_acquire(p.counter) == 0) {
  }
}

__global__ void two_instructions(MistakeParams p) {
  if (threadIdx.x % 32 < 16) {
    __syncwarp();
  } else {
    p.out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, p.in[threadIdx.x], 1);
  }
}

__global__ void ended_lane(MistakeParams p) {
  if (threadIdx.x != 5) p.out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, p.in[threadIdx.x], 1);
}

// ---- addresses and numbers ----

__global__ void uninitialised(MistakeParams p) { p.out[threadIdx.x] = numbers()[threadIdx.x]; }

__global__ void misaligned_matrix(MistakeParams) {
  uint32_t matrices[4];
  load_matrices(matrices, numbers() + 1);
}

__global__ void matrix_outside(MistakeParams) {
  uint32_t matrices[4];
  load_matrices(matrices, numbers() + threads);
}

__global__ void misaligned_vector(MistakeParams p) { p.out[threadIdx.x] = reinterpret_cast<const float4*>(p.in + 1)->x; }

template <int at>
__global__ void outside(MistakeParams) { numbers()[at] = 1; }

__global__ void null_pointer(MistakeParams p) {
  float* const null = p.zero ? p.out : nullptr;
  null[threadIdx.x] = 1;
}

__global__ void behind_tensor(MistakeParams p) { p.out[threadIdx.x + 1] = 1; }

__global__ void zero_division(MistakeParams p) { p.out[threadIdx.x] = static_cast<float>(1 / p.zero); }

__global__ void index_out_of_bounds(MistakeParams p) {
  float registers[4] = {};
  p.out[threadIdx.x] = registers[threadIdx.x + p.zero];
}

__global__ void endless_loop(MistakeParams p) {
  while (*static_cast<volatile int*>(&p.zero) == 0) {
  }
}

__global__ void endless_reading(MistakeParams p) {
  while (*static_cast<const volatile float*>(p.in) == p.in[0]) {
  }
}

int deeper(int depth) {
  volatile int used[100] = {depth};
  return depth < 0 ? 0 : deeper(depth + 1) + used[depth % 100];
}
__global__ void endless_stack(MistakeParams p) { p.out[threadIdx.x] = static_cast<float>(deeper(0)); }

// ---- blocks that wait for each other: out = in, reversed ----

enum class Arrive { all, not_all, nobody };

template <Arrive arrive>
__global__ void reverse_in_grid(MistakeParams p) {
  const unsigned i = blockIdx.x * threads + threadIdx.x, all = gridDim.x * threads;
  p.counter[1 + i] = i;
  __syncthreads();
  if (threadIdx.x == 0 && arrive != Arrive::nobody) {
    if (arrive == Arrive::all || blockIdx.x) add_release(p.counter, 1);
    while (load_acquire(p.counter) < gridDim.x) {
    }
  }
  __syncthreads();
  p.out[i] = p.in[p.counter[all - i]];
}

// All blocks but the last read what all write later; the last goes from barrier to barrier.
template <bool barrier>
__global__ void write_after_reads(MistakeParams p) {
  const unsigned i = blockIdx.x * threads + threadIdx.x;
  if (blockIdx.x == 0) p.counter[1 + threadIdx.x] = threadIdx.x;
  for (unsigned round = 1; round <= 2; ++round) {
    if (blockIdx.x + 1 < gridDim.x) __syncthreads();
    if (threadIdx.x == 0 && (barrier || round == 1)) {
      add_release(p.counter, 1);
      while (load_acquire(p.counter) < round * gridDim.x) {
      }
    }
    __syncthreads();
    if (round == 1 && blockIdx.x + 1 < gridDim.x) p.out[i] = p.in[p.counter[1 + threadIdx.x]];
  }
  if (blockIdx.x + 1 == gridDim.x) p.counter[1 + threadIdx.x] = 0, p.out[i] = 0;
}

__global__ void same_number_twice(MistakeParams p) { p.out[threadIdx.x] = static_cast<float>(blockIdx.x); }

// ---- warpgroups: out[t] = in[row of sum 0 of thread t], as the product of rows of one number and (1, 0, 0, ...) ----

enum class Slip { none, no_fence, no_barrier, too_early, absent, misaligned };

template <Slip slip>
__global__ void multiply_in_warpgroup(MistakeParams p) {
  unsigned char* const tiles = align_1024(shared_memory()) + (slip == Slip::misaligned ? 512 : 0);
  constexpr int rows = 64, columns = 128;
  for (int i = threadIdx.x; i < (rows + columns) * 64; i += threads) {
    const int row = i / 64, k = i % 64, byte = row * 128 + 16 * (k / 8 ^ row % 8) + 2 * (k % 8);
    *reinterpret_cast<__half*>(tiles + byte) = __float2half_rn(row < rows ? p.in[row] : k == 0 ? 1.f : 0.f);
  }
  if (slip != Slip::no_fence) fence_async_proxy();
  if (slip != Slip::no_barrier) __syncthreads();
  WarpGroup<__half>::Sums sums = {};
  WarpGroup<__half>::begin(sums);
  if (slip != Slip::absent || threadIdx.x >= 32) WarpGroup<__half>::multiply(sums, tiles + 32, tiles + rows * 128 + 32);
  WarpGroup<__half>::multiply(sums, tiles, tiles + rows * 128);
  if (slip == Slip::too_early) p.out[threadIdx.x] = sums[0][0][0];
  WarpGroup<__half>::end(sums);
  if (slip != Slip::too_early) p.out[threadIdx.x] = sums[0][0][0];
}

struct Case {
  const char* name;
  void (*kernel)(MistakeParams);
};
#define CASE(kernel) \
  { #kernel, kernel }
const Case cases[] = {
    CASE(reverse<true>), CASE(reverse<false>), CASE(reverse_twice<true>), CASE(reverse_twice<false>),
    CASE(reverse_copied<true>), CASE(reverse_copied<false>), CASE(copy_without_wait), CASE(swap_in_warp<true>),
    CASE(swap_in_warp<false>), CASE(two_barriers), CASE(absent_from_barrier), CASE(two_instructions), CASE(ended_lane),
    CASE(uninitialised), CASE(misaligned_matrix), CASE(matrix_outside), CASE(misaligned_vector), CASE(outside<threads>),
    CASE(outside<-1>), CASE(null_pointer), CASE(behind_tensor), CASE(zero_division), CASE(index_out_of_bounds),
    CASE(endless_loop), CASE(endless_reading), CASE(endless_stack),
    CASE(reverse_in_grid<Arrive::all>), CASE(reverse_in_grid<Arrive::not_all>),
    CASE(reverse_in_grid<Arrive::nobody>), CASE(same_number_twice),
    CASE(write_after_reads<true>), CASE(write_after_reads<false>),
    CASE(multiply_in_warpgroup<Slip::none>), CASE(multiply_in_warpgroup<Slip::no_fence>),
    CASE(multiply_in_warpgroup<Slip::no_barrier>), CASE(multiply_in_warpgroup<Slip::too_early>),
    CASE(multiply_in_warpgroup<Slip::absent>), CASE(multiply_in_warpgroup<Slip::misaligned>),
};

}  // namespace

cudaError_t mistake(const std::string& name, const MistakeParams& params, int blocks, int shared_bytes,
                    const Context& context) {
  const auto* const found = std::find_if(std::begin(cases), std::end(cases),
                                         [&](const Case& made) { return name == made.name; });
  if (found == std::end(cases)) return cudaErrorInvalidValue;
  const bool cooperative = name.rfind("reverse_in_grid", 0) == 0 || name.rfind("write_after", 0) == 0;
  return launch(found->kernel, params, {blocks, threads, shared_bytes, cooperative}, context);
}

}  // namespace vitsparse::cuda
