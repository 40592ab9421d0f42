// The steps of one wave, or of many waves with a barrier of all blocks between them, in one launch.
//
// The host lists the steps of a launch (ProgramItem): where their words lie, and how many tasks they have. The tasks of a
// wave, of all its steps one after the other, are dealt to the blocks in turn. Before a block runs a step one warp
// reads its words into a record in shared memory, behind what the tasks use; for the first task after a barrier it does
// so while the others wait, which hides two trips to memory.
//
// The barrier counts arrivals, and its number only grows: for the k-th barrier of a launch all blocks wait until it is
// k times their number. The launch before has set it to zero.
#pragma once
#include "kernels/cuda/apply_pattern.cuh"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/moves.cuh"
#include "kernels/cuda/norm_linear.cuh"
#include "kernels/cuda/program_sum.cuh"
#include "kernels/cuda/qkv_attention.cuh"

namespace vitsparse::cuda {

constexpr int program_threads = 256;
constexpr int max_items = 480;  // what 4 KB of parameters hold

struct ProgramItem {
  uint32_t at : 29, small_tile : 1, last : 1;  // first word of the step; LinearTile; whether it is the last of its wave
  int end;                                     // tasks of the wave up to and with this step
};

struct ProgramParams {
  ProgramBase base;
  uint32_t* barrier;      // for more than one wave
  bool clears;            // the barrier, for the next launch
  int count, record_at;   // items; bytes of shared memory before the record
  ProgramItem items[max_items];
};
static_assert(sizeof(ProgramParams) <= 4096);

// A step, ready to run.
struct StepRecord {
  format::Op op;
  union {
    LinearParams linear;
    AttentionParams attention;
    QkvAttentionParams qkv_attention;
    ApplyPatternParams apply_pattern;
    PatchesParams patches;
    MeanRowsParams mean_rows;
    FillParams fill;
    SumRows sum;
    NormLinearParams norm_linear;
  };
};

// By one thread.
__device__ inline void read_operands(StepRecord& record, const ProgramBase& base, const format::Step& step) {
  using format::Op;
  record.op = step.op;
  switch (step.op) {
    case Op::linear: record.linear = linear_of(base, step.operands); break;
    case Op::sum_norm: record.sum = sum_rows_of(step.operands); break;
    case Op::attention: record.attention = attention_of(base, step.operands); break;
    case Op::qkv_attention: record.qkv_attention = qkv_attention_of(base, step.operands); break;
    case Op::apply_pattern: record.apply_pattern = apply_pattern_of(base, step.operands); break;
    case Op::patches: record.patches = patches_of(base, step.operands); break;
    case Op::mean_rows: record.mean_rows = mean_rows_of(base, step.operands); break;
    case Op::fill: record.fill = fill_of(base, step.operands); break;
    case Op::norm_linear: record.norm_linear = norm_linear_of(base, step.operands); break;
    default: break;  // MLP: the host does not launch it
  }
}

// By a warp: its lanes find the sources of a sum side by side.
__device__ inline void read_step(StepRecord& record, const ProgramBase& base, const int64_t* words) {
  const format::Step step = format::step_at(words);
  const int lane = threadIdx.x % 32;
  View source = {};
  bool own = false;
  if (step.op == format::Op::norm_linear) {
    own = lane < format::gathers<format::NormLinear>(step.operands);
    if (own) source = view_of(base, format::source_behind<format::NormLinear>(step.operands, lane));
  }
  if (lane == 0) read_operands(record, base, step);
  __syncwarp();
  if (own) record.norm_linear.sources[lane] = source;
}

// `many`: as in program_kernel.
template <Level level, class T, bool many>
__device__ __forceinline__ void run_task(const StepRecord& record, const ProgramBase& base, bool small_tile, int task) {
  using format::Op;
  switch (record.op) {
    case Op::linear:
      if (small_tile) return linear_task_of<level, T, false, SmallLinear>(record.linear, task);
      return linear_task_of<level, T, false, MediumLinear>(record.linear, task);
    case Op::norm_linear: return norm_linear_task<level, T>(record.norm_linear, task);
    case Op::sum_norm: return sum_rows_task<T, true>(base, record.sum, task);
    case Op::attention:
      if (many || record.attention.head_dim <= 32) return attention_task_of<level, T, 32>(record.attention, task);
      return attention_task_of<level, T, 64>(record.attention, task);
    case Op::apply_pattern: return apply_pattern_task<level, T>(record.apply_pattern, task);
    default: break;
  }
  if constexpr (!many) {
    switch (record.op) {
      case Op::qkv_attention: return qkv_attention_task_of<level, T, 32, 1>(record.qkv_attention, task, false);
      case Op::patches: return patches_task<T>(record.patches, task);
      case Op::mean_rows: return mean_rows_task<T>(record.mean_rows, task);
      case Op::fill: return fill_task<T>(record.fill, task);
      default: return;
    }
  }
}

// Waits until all blocks have arrived `times` times; meanwhile another warp of the block calls prepare().
template <class Prepare>
__device__ __forceinline__ void wait_for_all(uint32_t* barrier, uint32_t times, Prepare prepare) {
  if (threadIdx.x == 0) add_release(barrier, 1);
  if (threadIdx.x / 32 == 1) prepare();
  if (threadIdx.x == 0) {
    while (load_acquire(barrier) < times * gridDim.x) {}
  }
  __syncthreads();
}

// The tasks of one block, one after the other: wave by wave, and in a wave every gridDim.x-th.
struct Walk {
  int first, item, task;  // item that the wave begins with; item and number in the wave of the task; item -1: none is left

  __device__ __forceinline__ void begin(const ProgramParams& params, int item_of_wave) {
    first = item = item_of_wave;
    task = blockIdx.x;
    find(params);
  }
  __device__ __forceinline__ void next(const ProgramParams& params) {
    task += gridDim.x;
    find(params);
  }
  __device__ __forceinline__ int task_of_step(const ProgramParams& params) const {
    return task - (item == first ? 0 : params.items[item - 1].end);
  }

 private:
  __device__ __forceinline__ void find(const ProgramParams& params) {
    while (task >= params.items[item].end && !params.items[item].last) ++item;
    if (task >= params.items[item].end) item = -1;
  }
};

// many: any number of waves, of LINEAR, NORM_LINEAR, SUM_NORM, APPLY_PATTERN, and ATTENTION of narrow heads; all blocks run at once.
// Else one wave, and each block has one task. Two kernels because registers are short: around a loop over tasks the
// compiler computes in advance whatever depends on the thread alone, for all kinds of steps, and keeps it.
template <Level level, class T, bool many>
__global__ void __launch_bounds__(program_threads, 1) program_kernel(ProgramParams params) {
  StepRecord& record = *reinterpret_cast<StepRecord*>(shared_memory() + params.record_at);
  const auto read = [&](int item) {
    if (item >= 0) read_step(record, params.base, params.base.words + params.items[item].at);
  };
  if (params.clears && blockIdx.x == 0 && threadIdx.x == 0) *params.barrier = 0;
  Walk walk;
  walk.begin(params, 0);
  int ready = walk.item;  // what is in the record
  uint32_t waves = 0;
  if (threadIdx.x < 32) read(ready);
  __syncthreads();
  if (many && ready < 0) goto advance;  // two ways into the loop: no compiler moves anything out of it
run:
  run_task<level, T, many>(record, params.base, params.items[walk.item].small_tile, walk.task_of_step(params));
  if constexpr (!many) return;
  __syncthreads();
  walk.next(params);
advance:
  while (walk.item < 0) {
    while (!params.items[walk.first].last) ++walk.first;
    if (walk.first + 1 == params.count) return;
    walk.begin(params, walk.first + 1);
    ready = walk.item;
    wait_for_all(params.barrier, ++waves, [&] { read(ready); });
  }
  if (walk.item != ready) {
    ready = walk.item;
    if (threadIdx.x < 32) read(ready);
    __syncthreads();
  }
  goto run;
}

}  // namespace vitsparse::cuda
