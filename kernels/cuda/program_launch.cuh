// Which launches of program_kernel a program takes: included by the files that instantiate a level.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/program_kernel.cuh"
#include "kernels/cuda/program_steps.h"

namespace vitsparse::cuda {

// Tasks of a step for blocks of program_threads, the shared memory they need, and which kernels can run it.
struct StepSize {
  int tasks = 0, shared = 0;
  bool small_tile = false;
  bool fits = true, stays = false;  // in program_kernel; in the one for many waves
};

// `persistent`: waves that can are listed for one launch. The barrier must be zero before that: the launch of a single wave
// sets it to zero, so that each launch of many waves comes after one of a single wave. A list that is too long for one
// launch is cut between waves, or within a wave, whose steps do not need each other; a step that fits in no task of
// program_kernel has a launch of its own.
template <Level level, class T>
class ProgramLaunches {
 public:
  ProgramLaunches(const ProgramRun& run, const ProgramBase& host, bool persistent, const Context& context)
      : run_(run), host_(host), context_(context), persistent_(persistent) {}

  ProgramStatus launch_all() {
    ProgramStatus status{cudaSuccess, -1};
    int64_t number = 0, wave = 0;
    format::for_each_step(run_.program, [&](const format::Step& step) {
      if (status.error != cudaSuccess) return;
      if (step.wave != wave) {
        end_wave();
        if (single_) status.error = flush();
      }
      wave = step.wave;
      if (status.error == cudaSuccess) status = {add(step), number++};
    });
    end_wave();
    return status.error == cudaSuccess ? ProgramStatus{flush(), -1} : status;
  }

 private:
  StepSize size_of(const format::Step& step) const {
    using format::Op;
    switch (step.op) {
      case Op::linear: return size_of(linear_of(host_, step.operands));
      case Op::sum_norm: {
        const SumSize sum = sum_size_of(step, host_.batch, program_threads, true);
        return {sum.tasks, sum.shared, false, true, true};
      }
      case Op::attention: return size_of(attention_of(host_, step.operands));
      case Op::qkv_attention: return size_of(qkv_attention_of(host_, step.operands));
      case Op::apply_pattern:
        return {apply_pattern_tasks(apply_pattern_of(host_, step.operands)), apply_pattern_shared<T>(), false, true, true};
      case Op::patches: return {patches_tasks<T>(patches_of(host_, step.operands)), 0};
      case Op::mean_rows:
        return {mean_rows_tasks(mean_rows_of(host_, step.operands)), mean_rows_shared(program_threads)};
      case Op::fill: return {fill_tasks<T>(fill_of(host_, step.operands)), 0};
      case Op::norm_linear: return size_of_norm_linear(step.operands);
      case Op::mlp: break;
    }
    return {0, 0, false, false};
  }
  StepSize size_of(const LinearParams& params) const {
    const LinearTile tile = linear_tile(params, context_) == LinearTile::small ? LinearTile::small : LinearTile::medium;
    return {linear_tasks(params, tile), linear_shared<level, T>(params, tile), tile == LinearTile::small, true, true};
  }
  StepSize size_of_norm_linear(const int64_t* operands) const {
    const NormLinearParams params = norm_linear_of(host_, operands);
    const bool fits = format::gathers<format::NormLinear>(operands) <= max_gathered;
    return {norm_linear_tasks(params), norm_linear_shared<level, T>(params), true, fits, fits};
  }
  static StepSize size_of(const AttentionParams& params) {
    return {attention_tasks<T>(params, program_threads), attention_shared<T>(params, program_threads), false,
            params.head_dim <= 64, params.head_dim <= 32};
  }
  StepSize size_of(const QkvAttentionParams& params) const {
    const bool narrow = params.head_dim <= 32 && qkv_depth(params, program_threads) == 1;
    return {qkv_attention_tasks(params), qkv_attention_shared<level, T>(params, program_threads), false, narrow};
  }

  cudaError_t add(const format::Step& step) {
    StepSize size = size_of(step);
    size.fits = size.fits && size.shared <= context_.shared_limit - static_cast<int>(sizeof(StepRecord)) &&
                size.tasks <= std::numeric_limits<int>::max() - tasks_;
    cudaError_t status = cudaSuccess;
    if (!size.fits) {
      end_wave();
      status = flush();
      return status == cudaSuccess ? launch_step(run_, host_, step, context_) : status;
    }
    if (!size.stays && whole_ > 0) status = flush();
    if (status == cudaSuccess && items_.size() == max_items) {
      if (whole_ == 0) end_wave();
      status = flush();
    }
    single_ = single_ || !size.stays;
    tasks_ += size.tasks;
    shared_ = std::max(shared_, size.shared);
    const auto at = static_cast<uint32_t>(step.operands - format::step_head - run_.program.data);
    items_.push_back({at, size.small_tile, 0, tasks_});
    return status;
  }

  void end_wave() {
    if (items_.size() == whole_) return;
    items_.back().last = 1;
    most_tasks_ = std::max(most_tasks_, tasks_);
    tasks_ = 0;
    ++waves_;
    whole_ = items_.size();
  }

  // Launches the whole waves of the list.
  cudaError_t flush() {
    if (whole_ == 0) return cudaSuccess;
    const bool many = waves_ > 1;
    ProgramParams params{host_, run_.barrier, persistent_ && !many, static_cast<int>(whole_), round_up(shared_, 16), {}};
    params.base.words = run_.device_words;
    std::copy(items_.begin(), items_.begin() + whole_, params.items);
    const int blocks = many ? std::min(context_.multiprocessors, most_tasks_) : most_tasks_;
    const Grid grid{blocks, program_threads, params.record_at + static_cast<int>(sizeof(StepRecord)), many};
    items_.erase(items_.begin(), items_.begin() + whole_);
    single_ = !persistent_ || many;  // after many waves the barrier is not zero
    most_tasks_ = waves_ = 0;
    whole_ = 0;
    if (items_.empty()) shared_ = 0;
    return many ? launch(program_kernel<level, T, true>, params, grid, context_)
                : launch(program_kernel<level, T, false>, params, grid, context_);
  }

  const ProgramRun& run_;
  const ProgramBase& host_;
  const Context& context_;
  const bool persistent_;
  bool single_ = true;  // the list ends with the wave that it begins with
  std::vector<ProgramItem> items_;
  size_t whole_ = 0;  // items of waves that are complete
  int tasks_ = 0, most_tasks_ = 0, shared_ = 0, waves_ = 0;
};

}  // namespace vitsparse::cuda
