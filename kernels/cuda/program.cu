// A launch of the op's own kernel for each step; or which level's code launches whole waves.
#include "kernels/cuda/program.h"

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/program_steps.h"
#include "kernels/cuda/program_sum.cuh"

namespace vitsparse::cuda {

ProgramStatus launch_waves_sm75(const ProgramRun& run, const ProgramBase& base, bool persistent, const Context& context);
ProgramStatus launch_waves_sm80(const ProgramRun& run, const ProgramBase& base, bool persistent, const Context& context);

namespace {

struct SumStep {
  ProgramBase base;
  SumRows sum;
};

constexpr int most_sum_threads = 128;

template <class T>
__global__ void __launch_bounds__(most_sum_threads, 2) sum_step_kernel(SumStep step) {
  sum_rows_task<T, false>(step.base, step.sum, blockIdx.x);
}

// A sum of one part.
SumNormParams sum_norm_of(const ProgramBase& base, const int64_t* operands) {
  const auto s = format::read<format::SumNorm>(operands);
  const auto part = format::read<format::SumPart>(format::parts_of_sum(operands));
  const int64_t* terms = format::parts_of_sum(operands) + format::words_of<format::SumPart>;
  SumNormParams params{};
  params.count = static_cast<int>(part.adds);
  params.minuses = static_cast<int>(part.minuses);
  for (int64_t i = 0; i < part.adds + part.minuses; ++i)
    params.sources[i] = view_of(base, format::source_of_sum(operands, terms[i]));
  params.offset = base.weights_or_null(part.offset_offset);
  params.offset_stride = part.offset_rows == 1 ? 0 : s.width;
  params.sum = view_of(base, part.sum);
  params.normed = view_of(base, part.normed);
  params.batch = base.batch;
  params.rows = static_cast<int>(format::rows_of_sum(operands));
  params.width = static_cast<int>(s.width);
  params.eps = format::float_of_bits(s.eps_bits);
  return params;
}

cudaError_t launch_sum(const ProgramRun& run, const ProgramBase& host, const format::Step& step, const Context& context) {
  const auto s = format::read<format::SumNorm>(step.operands);
  const auto part = format::read<format::SumPart>(format::parts_of_sum(step.operands));
  if (s.parts == 1 && part.adds + part.minuses <= max_sources) return sum_norm(sum_norm_of(host, step.operands), context);
  SumStep sum{host, sum_rows_of(step.operands)};
  const int threads = host.batch * sum.sum.rows < 4 * context.multiprocessors ? 32 : most_sum_threads;
  const SumSize size = sum_size_of(step, host.batch, threads, false);
  if (size.shared > context.shared_limit) return cudaErrorInvalidValue;
  const Grid grid{size.tasks, threads, size.shared};
  sum.base.words = run.device_words;
  sum.sum.operands = run.device_words + (step.operands - run.program.data);
  switch (context.dtype) {
    case Dtype::float16: return launch(sum_step_kernel<__half>, sum, grid, context);
    case Dtype::bfloat16: return launch(sum_step_kernel<__nv_bfloat16>, sum, grid, context);
    default: return launch(sum_step_kernel<float>, sum, grid, context);
  }
}

ProgramStatus launch_steps(const ProgramRun& run, const ProgramBase& host, const Context& context) {
  ProgramStatus status{cudaSuccess, -1};
  int64_t number = 0;
  format::for_each_step(run.program, [&](const format::Step& step) {
    if (status.error == cudaSuccess) status = {launch_step(run, host, step, context), number};
    ++number;
  });
  return status;
}

ProgramBase base_of(const ProgramRun& run, const Context& context) {
  return {run.program.data,
          static_cast<const unsigned char*>(run.images),
          static_cast<const unsigned char*>(run.weights),
          static_cast<unsigned char*>(run.arena),
          static_cast<unsigned char*>(run.result),
          run.batch,
          context.dtype == Dtype::float32 ? 4 : 2};
}

}  // namespace

cudaError_t launch_step(const ProgramRun& run, const ProgramBase& host, const format::Step& step, const Context& context) {
  using format::Op;
  switch (step.op) {
    case Op::linear: return linear(linear_of(host, step.operands), context);
    case Op::sum_norm: return launch_sum(run, host, step, context);
    case Op::attention: return attention(attention_of(host, step.operands), context);
    case Op::apply_pattern: return apply_pattern(apply_pattern_of(host, step.operands), context);
    case Op::patches: return patches(patches_of(host, step.operands), context);
    case Op::mean_rows: return mean_rows(mean_rows_of(host, step.operands), context);
    case Op::fill: return fill(fill_of(host, step.operands), context);
    case Op::mlp:
    case Op::qkv_attention:
    case Op::norm_linear: return launch_joined(host, step, run.scratch, context);
  }
  return cudaErrorInvalidValue;
}

int64_t program_scratch(const ProgramRun& run, const Context& context) {
  const ProgramBase base = base_of(run, context);
  int64_t most = 0;
  format::for_each_step(run.program, [&](const format::Step& step) {
    most = std::max(most, joined_scratch(base, step, context));
  });
  return most * run.batch;
}

ProgramStatus run_program(const ProgramRun& run, How how, const Context& context) {
  const ProgramBase base = base_of(run, context);
  if (how == How::steps) return launch_steps(run, base, context);
  const bool old = context.level == Level::sm75 || context.dtype == Dtype::float32;
  return (old ? launch_waves_sm75 : launch_waves_sm80)(run, base, how == How::persistent, context);
}

}  // namespace vitsparse::cuda
