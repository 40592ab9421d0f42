// Kernels with one mistake each, which the emulator has to find; and a few without.
#include <string>

#include "csrc/cuda/tensors.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace vitsparse::cuda {
namespace {

constexpr int threads = 128;

struct Params {
  const float* in;    // [blocks][threads]
  float* out;         // likewise
  uint32_t* counter;  // [1 + blocks * threads], zeros
  int zero;
};

__device__ float* numbers() { return reinterpret_cast<float*>(shared_memory()); }

// ---- threads of a block: out = in, reversed ----

template <bool barrier>
__global__ void reverse(Params p) {
  numbers()[threadIdx.x] = p.in[threadIdx.x];
  if (barrier) __syncthreads();
  p.out[threadIdx.x] = numbers()[threads - 1 - threadIdx.x];
}

template <bool barrier>
__global__ void reverse_twice(Params p) {
  for (int i = 0; i < 2; ++i) {
    numbers()[threadIdx.x] = p.in[threadIdx.x] + i;
    __syncthreads();
    p.out[threadIdx.x] = numbers()[threads - 1 - threadIdx.x];
    if (barrier) __syncthreads();
  }
}

template <bool in_time>
__global__ void reverse_copied(Params p) {
  if (threadIdx.x < threads / 4) copy_16<Level::sm80>(numbers() + 4 * threadIdx.x, p.in + 4 * threadIdx.x);
  commit_copies<Level::sm80>();
  if (in_time) wait_copies<Level::sm80, 0>();
  __syncthreads();
  p.out[threadIdx.x] = numbers()[threads - 1 - threadIdx.x];
  wait_copies<Level::sm80, 0>();
}

__global__ void copy_without_wait(Params p) {
  if (threadIdx.x < threads / 4) copy_16<Level::sm80>(numbers() + 4 * threadIdx.x, p.in + 4 * threadIdx.x);
  commit_copies<Level::sm80>();
}

template <bool synchronised>
__global__ void swap_in_warp(Params p) {
  numbers()[threadIdx.x] = p.in[threadIdx.x];
  if (synchronised) __syncwarp();
  p.out[threadIdx.x] = numbers()[threadIdx.x ^ 1];
}

__global__ void two_barriers(Params) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void absent_from_barrier(Params p) {
  if (threadIdx.x < 32) __syncthreads();
  while (load_acquire(p.counter) == 0) {
  }
}

__global__ void two_instructions(Params p) {
  if (threadIdx.x % 32 < 16) {
    __syncwarp();
  } else {
    p.out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, p.in[threadIdx.x], 1);
  }
}

__global__ void ended_lane(Params p) {
  if (threadIdx.x != 5) p.out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, p.in[threadIdx.x], 1);
}

// ---- addresses and numbers ----

__global__ void uninitialised(Params p) { p.out[threadIdx.x] = numbers()[threadIdx.x]; }

__global__ void misaligned_matrix(Params) {
  uint32_t matrices[4];
  load_matrices(matrices, numbers() + 1);
}

__global__ void matrix_outside(Params) {
  uint32_t matrices[4];
  load_matrices(matrices, numbers() + threads);
}

__global__ void misaligned_vector(Params p) { p.out[threadIdx.x] = reinterpret_cast<const float4*>(p.in + 1)->x; }

template <int by>
__global__ void overrun(Params) { numbers()[threads + by] = 1; }

__global__ void null_pointer(Params p) {
  float* const null = p.zero ? p.out : nullptr;
  null[threadIdx.x] = 1;
}

__global__ void behind_tensor(Params p) { p.out[threadIdx.x + 1] = 1; }

__global__ void zero_division(Params p) { p.out[threadIdx.x] = static_cast<float>(1 / p.zero); }

__global__ void index_out_of_bounds(Params p) {
  float registers[4] = {};
  p.out[threadIdx.x] = registers[threadIdx.x + p.zero];
}

__global__ void endless_loop(Params p) {
  while (*static_cast<volatile int*>(&p.zero) == 0) {
  }
}

int deeper(int depth) {
  volatile int used[100] = {depth};
  return depth < 0 ? 0 : deeper(depth + 1) + used[depth % 100];
}
__global__ void endless_stack(Params p) { p.out[threadIdx.x] = static_cast<float>(deeper(0)); }

// ---- blocks that wait for each other: out = in, reversed ----

enum class Arrive { all, not_all, nobody };

template <Arrive arrive>
__global__ void reverse_in_grid(Params p) {
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

__global__ void same_number_twice(Params p) { p.out[threadIdx.x] = static_cast<float>(blockIdx.x); }

struct Case {
  const char* name;
  void (*kernel)(Params);
};
#define CASE(kernel) \
  { #kernel, kernel }
const Case cases[] = {
    CASE(reverse<true>), CASE(reverse<false>), CASE(reverse_twice<true>), CASE(reverse_twice<false>),
    CASE(reverse_copied<true>), CASE(reverse_copied<false>), CASE(copy_without_wait), CASE(swap_in_warp<true>),
    CASE(swap_in_warp<false>), CASE(two_barriers), CASE(absent_from_barrier), CASE(two_instructions), CASE(ended_lane),
    CASE(uninitialised), CASE(misaligned_matrix), CASE(matrix_outside), CASE(misaligned_vector), CASE(overrun<0>),
    CASE(overrun<-1 - threads>), CASE(null_pointer), CASE(behind_tensor), CASE(zero_division), CASE(index_out_of_bounds),
    CASE(endless_loop), CASE(endless_stack), CASE(reverse_in_grid<Arrive::all>), CASE(reverse_in_grid<Arrive::not_all>),
    CASE(reverse_in_grid<Arrive::nobody>), CASE(same_number_twice),
};

}  // namespace
}  // namespace vitsparse::cuda

namespace {

using namespace vitsparse;
using torch::stable::Tensor;

void mistake(const Tensor& in, Tensor out, Tensor counter, std::string name, int64_t shared_bytes) {
  const auto* const found = std::find_if(std::begin(cuda::cases), std::end(cuda::cases),
                                         [&](const cuda::Case& made) { return name == made.name; });
  STD_TORCH_CHECK(found != std::end(cuda::cases), "no kernel is called ", name);
  const cuda::Params params{static_cast<const float*>(in.const_data_ptr()), static_cast<float*>(out.mutable_data_ptr()),
                            static_cast<uint32_t*>(counter.mutable_data_ptr()), 0};
  const int blocks = static_cast<int>(in.numel() / cuda::threads);
  const bool cooperative = name.rfind("reverse_in_grid", 0) == 0;
  binding::check(cuda::launch(found->kernel, params, {blocks, cuda::threads, static_cast<int>(shared_bytes), cooperative},
                              binding::context_of(in)), "mistake");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vitsparse_emulated, m) {
  m.def("mistake(Tensor x, Tensor(a!) out, Tensor(b!) counter, str name, int shared_bytes) -> ()");
}
VITSPARSE_REGISTER_CUDA(m) { m.impl("mistake", TORCH_BOX(&mistake)); }
