// Which launches of program_kernel a program takes: included by the files that instantiate a level.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/program.h"
#include "kernels/cuda/program_kernel.cuh"

namespace vitsparse::cuda {

// Tasks of a step for blocks of program_threads, and the shared memory they need.
struct StepSize {
  int tasks = 0, shared = 0;
  bool small_tile = false, fits = true;
};

template <Level level, class T>
class ProgramLaunches {
 public:
  ProgramLaunches(const ProgramRun& run, const ProgramBase& host, const Context& context)
      : run_(run), host_(host), context_(context) {}

  // One launch for each wave; or, `persistent`, one for the first wave, which clears the barrier, and one for the rest.
  // A list that is too long for one launch is cut: between waves, or within a wave, whose steps do not need each other.
  ProgramStatus launch_all(bool persistent) {
    int64_t number = 0;
    cudaError_t status = cudaSuccess;
    format::for_each_step(run_.program, [&](const format::Step& step) {
      if (unfit_ >= 0 || status != cudaSuccess) return;
      const bool begins = number == 0 || step.wave != wave_;
      wave_ = step.wave;
      if (begins) end_wave();
      if (begins && (!persistent || first_wave_)) status = flush();
      if (status == cudaSuccess && items_.size() == max_items) status = make_room();
      append(step, number++);
    });
    if (unfit_ >= 0) return {cudaErrorInvalidValue, unfit_};
    end_wave();
    return {status == cudaSuccess ? flush() : status, -1};
  }

 private:
  StepSize size_of(const format::Step& step) const {
    using format::Op;
    switch (step.op) {
      case Op::linear: return size_of(linear_of(host_, step.operands));
      case Op::sum_norm: return {sum_rows_tasks(host_.batch, sum_rows_of(step.operands), program_threads), 0};
      case Op::attention: return size_of(attention_of(host_, step.operands));
      case Op::qkv_attention: return size_of(qkv_attention_of(host_, step.operands));
      case Op::apply_pattern:
        return {apply_pattern_tasks(apply_pattern_of(host_, step.operands)), apply_pattern_shared<T>()};
      case Op::patches: return {patches_tasks<T>(patches_of(host_, step.operands)), 0};
      case Op::mean_rows:
        return {mean_rows_tasks(mean_rows_of(host_, step.operands)), mean_rows_shared(program_threads)};
      case Op::fill: return {fill_tasks<T>(fill_of(host_, step.operands)), 0};
      case Op::mlp: break;
    }
    return {0, 0, false, false};  // an MLP has a launch of its own, or is lowered to its parts
  }
  StepSize size_of(const LinearParams& params) const {
    const LinearTile tile = linear_tile(params, context_) == LinearTile::small ? LinearTile::small : LinearTile::medium;
    return {linear_tasks(params, tile), linear_shared<level, T>(params, tile), tile == LinearTile::small};
  }
  static StepSize size_of(const AttentionParams& params) {
    return {attention_tasks<T>(params, program_threads), attention_shared<T>(params, program_threads), false,
            params.head_dim <= max_head_dim};
  }
  StepSize size_of(const QkvAttentionParams& params) const {
    return {qkv_attention_tasks(params), qkv_attention_shared<level, T>(params, program_threads), false,
            qkv_attention_holds<level, T>(params, program_threads, room())};
  }
  int room() const { return context_.shared_limit - static_cast<int>(sizeof(StepRecord)); }

  void append(const format::Step& step, int64_t number) {
    const StepSize size = size_of(step);
    if (!size.fits || size.shared > room() || size.tasks > std::numeric_limits<int>::max() - tasks_) {
      unfit_ = number;
      return;
    }
    tasks_ += size.tasks;
    shared_ = std::max(shared_, size.shared);
    items_.push_back({static_cast<uint32_t>(step.operands - format::step_head - run_.program.data), size.small_tile, 0, tasks_});
  }
  void end_wave() {
    if (items_.empty()) return;
    items_.back().last = 1;
    most_tasks_ = std::max(most_tasks_, tasks_);
    tasks_ = 0;
    ++waves_;
    whole_ = items_.size();
  }

  // Launches the whole waves of a full list, or, with none, the wave that fills it.
  cudaError_t make_room() {
    if (whole_ == 0) {
      end_wave();
      return flush();
    }
    const std::vector<ProgramItem> rest(items_.begin() + whole_, items_.end());
    const int tasks = tasks_, shared = shared_;
    items_.resize(whole_);
    const cudaError_t status = flush();
    items_ = rest;
    tasks_ = tasks;
    shared_ = shared;
    return status;
  }

  // Launches what is listed, all of it whole waves.
  cudaError_t flush() {
    if (items_.empty()) return cudaSuccess;
    const bool many = waves_ > 1;
    ProgramParams params{host_, run_.barrier, run_.barrier != nullptr && !many, static_cast<int>(items_.size()), 0, {}};
    params.base.words = run_.device_words;
    params.record_at = round_up(shared_, 16);
    std::copy(items_.begin(), items_.end(), params.items);
    const int blocks = many ? std::min(context_.multiprocessors, most_tasks_) : most_tasks_;
    const Grid grid{blocks, program_threads, params.record_at + static_cast<int>(sizeof(StepRecord)), many};
    items_.clear();
    first_wave_ = many;  // the barrier is used up: the next launch is for a single wave, and clears it
    tasks_ = most_tasks_ = shared_ = waves_ = 0;
    whole_ = 0;
    return launch(program_kernel<level, T>, params, grid, context_);
  }

  const ProgramRun& run_;
  const ProgramBase& host_;
  const Context& context_;
  std::vector<ProgramItem> items_;
  size_t whole_ = 0;  // items of waves that are complete
  int tasks_ = 0, most_tasks_ = 0, shared_ = 0, waves_ = 0;
  int64_t wave_ = 0, unfit_ = -1;
  bool first_wave_ = true;
};

}  // namespace vitsparse::cuda
