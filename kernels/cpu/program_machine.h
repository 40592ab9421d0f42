// The steps of a program over some images whose values lie in one arena: from words to kernels and their tasks.
#pragma once
#include "kernels/cpu/cost.h"
#include "kernels/cpu/program.h"
#include "kernels/cpu/workspace.h"

namespace vitsparse::cpu {

// Rows [first, first + count) of what a step writes. A thread that computes the same rows in one step after the other
// finds most of what it reads in its own cache.
struct Slice {
  int64_t first, count;
};

// What a slice is made of: `tasks` independent tasks of about `each` floating-point operations.
struct Work {
  int64_t tasks;
  double each;
};

// Belongs to one thread. Several machines may share an arena and run different tasks of a wave.
class Machine {
 public:
  // `arena`: header.arena_numbers * images floats.
  Machine(const ProgramRun& run, int64_t first_image, int64_t images, float* arena)
      : program_(run.program), weights_(run.weights), arena_(arena), images_(images) {
    const format::Header h = format::header(program_);
    const format::Slot output = format::slot(program_, h.output_slot);
    channels_ = h.channels;
    size_ = h.image_size;
    pixels_ = run.images + first_image * channels_ * size_ * size_;
    result_ = run.result + first_image * output.rows * output.width;
  }

  // The rows that may be computed apart from each other; 1 where a step is not to be sliced.
  int64_t rows(const format::Step& step) const {
    using format::Op;
    if (images_ != 1) return 1;
    switch (step.op) {
      case Op::patches: return format::read<format::Patches>(step.operands).dst.rows;
      case Op::linear: return format::read<format::Linear>(step.operands).dst.rows;
      case Op::sum_norm: return format::rows_of_sum(step.operands);
      case Op::attention: return format::read<format::Attention>(step.operands).dst.rows;
      case Op::fill: return format::read<format::Fill>(step.operands).dst.rows;
      default: return 1;
    }
  }

  // `slice` null: the whole step.
  Work work(const format::Step& step, const Slice* slice = nullptr) const {
    if (step.op == format::Op::sum_norm) return work_of_sum(step, slice);
    Work work{};
    with_operation(step, slice, [&](const auto& op) {
      work.tasks = tasks(op);
      work.each = flops(op) / static_cast<double>(work.tasks);
    });
    return work;
  }

  double flops_of(const format::Step& step) const {
    if (step.op == format::Op::sum_norm) {
      const Work sum = work_of_sum(step, nullptr);
      return sum.each * static_cast<double>(sum.tasks);
    }
    double result = 0;
    with_operation(step, nullptr, [&](const auto& op) { result = flops(op); });
    return result;
  }

  void run(const format::Step& step, const Slice* slice, int64_t begin, int64_t end) {
    if (step.op == format::Op::sum_norm) return sum_norm(sum_of(step.operands, slice), begin, end);
    with_operation(step, slice, [=](const auto& op) { run_tasks(op, begin, end); });
  }
  void run(const format::Step& step) {
    if (step.op == format::Op::sum_norm) return sum_norm(sum_of(step.operands, nullptr));
    with_operation(step, nullptr, [](const auto& op) { run_tasks(op, 0, tasks(op)); });
  }

 private:
  static void run_tasks(const Linear& op, int64_t begin, int64_t end) { linear(op, begin, end); }
  static void run_tasks(const Attention& op, int64_t begin, int64_t end) { attention(op, begin, end); }
  static void run_tasks(const ApplyPattern& op, int64_t begin, int64_t end) { apply_pattern(op, begin, end); }
  static void run_tasks(const CutPatches& op, int64_t begin, int64_t end) { cut_patches(op, begin, end); }
  static void run_tasks(const MeanRows& op, int64_t begin, int64_t end) { mean_rows(op, begin, end); }
  static void run_tasks(const Fill& op, int64_t begin, int64_t end) { fill(op, begin, end); }

  MutableRows rows_of(const format::View& view) const {
    const format::Slot s = format::slot(program_, view.slot);
    const int64_t inside = view.row0 * s.width + view.col0;
    switch (s.space) {
      case format::Space::arena: return {arena_ + s.offset * images_ + inside, s.rows * s.width, s.width};
      case format::Space::result: return {result_ + inside, s.rows * s.width, s.width};
      default: return {const_cast<float*>(weights_) + s.offset + inside, 0, s.width};  // validated: never written
    }
  }
  Rows source(const format::View& view) const {
    const MutableRows rows = rows_of(view);
    return {rows.data, rows.image_stride, rows.row_stride};
  }

  static void cut(format::View& view, const Slice* slice) {
    if (!slice || !view.wanted()) return;
    view.row0 += slice->first;
    view.rows = slice->count;
  }
  static int64_t first_of(const Slice* slice) { return slice ? slice->first : 0; }

  // Calls use(op) with the operation that the slice of the step stands for, unless it is a SUM_NORM.
  template <class Use>
  void with_operation(const format::Step& step, const Slice* slice, const Use& use) const {
    using format::Op;
    switch (step.op) {
      case Op::patches: return use(operation(format::read<format::Patches>(step.operands), slice));
      case Op::linear: return use(operation(format::read<format::Linear>(step.operands), slice));
      case Op::attention: return use(operation(format::read<format::Attention>(step.operands), slice));
      case Op::apply_pattern: return use(operation(format::read<format::ApplyPattern>(step.operands)));
      case Op::mean_rows: return use(operation(format::read<format::MeanRows>(step.operands)));
      case Op::fill: return use(operation(format::read<format::Fill>(step.operands), slice));
      case Op::sum_norm:
      case Op::qkv_attention:  // not on CPU: no valid program has them
      case Op::mlp:
      case Op::norm_linear: return;
    }
  }
  CutPatches operation(format::Patches s, const Slice* slice) const {
    cut(s.dst, slice);
    return {pixels_, rows_of(s.dst), images_, first_of(slice), s.dst.rows, channels_, size_, s.patch};
  }
  Linear operation(format::Linear s, const Slice* slice) const {
    cut(s.src, slice);
    cut(s.dst, slice);
    const int64_t stride = s.bias_rows == 1 ? 0 : s.outputs;
    const float* bias = s.bias_offset == -1 ? nullptr : weights_ + s.bias_offset + first_of(slice) * stride;
    return {source(s.src), rows_of(s.dst), images_, s.src.rows, s.inputs, s.outputs, weights_ + s.packed_offset, bias,
            stride, static_cast<Activation>(s.activation), s.accumulate != 0};
  }
  Attention operation(format::Attention s, const Slice* slice) const {
    cut(s.q, slice);
    cut(s.dst, slice);
    return {source(s.q), source(s.k), source(s.v), rows_of(s.dst), images_, s.q.rows, s.k.rows, s.heads, s.head_dim,
            format::float_of_bits(s.scale_bits)};
  }
  ApplyPattern operation(const format::ApplyPattern& s) const {
    return {weights_ + s.pattern_offset, source(s.v), rows_of(s.dst), images_, s.dst.rows, s.v.rows, s.heads,
            s.head_dim};
  }
  MeanRows operation(const format::MeanRows& s) const {
    return {source(s.src), rows_of(s.dst), images_, s.src.rows, s.width};
  }
  Fill operation(format::Fill s, const Slice* slice) const {
    cut(s.dst, slice);
    return {weights_ + s.constant_offset + first_of(slice) * s.width, rows_of(s.dst), images_, s.dst.rows, s.width};
  }

  Work work_of_sum(const format::Step& step, const Slice* slice) const {
    const auto s = format::read<format::SumNorm>(step.operands);
    const int64_t terms = step.count - format::words_of<format::SumNorm> - s.sources * format::words_of<format::View> -
                          s.parts * format::words_of<format::SumPart>;
    const int64_t rows = slice ? slice->count : format::rows_of_sum(step.operands);
    return {images_ * rows, sum_norm_flops(s.width, s.sources, s.parts, terms)};
  }
  // Sources and parts in this thread's memory; made once for all chunks of a slice that this machine runs.
  const SumNorm& sum_of(const int64_t* operands, const Slice* slice) {
    const int64_t first = first_of(slice);
    if (operands == sum_operands_ && first == sum_first_) return sum_;
    const auto s = format::read<format::SumNorm>(operands);
    const auto rows_in = [&](format::View view) {
      cut(view, slice);
      return view.wanted() ? rows_of(view) : MutableRows{};
    };
    auto* sources = workspace_of<Rows>(Purpose::sources, s.sources);
    for (int64_t i = 0; i < s.sources; ++i) {
      const MutableRows rows = rows_in(format::source_of_sum(operands, i));
      sources[i] = {rows.data, rows.image_stride, rows.row_stride};
    }
    auto* parts = workspace_of<SumPart>(Purpose::parts, s.parts);
    auto* next = parts;
    format::for_each_part(operands, [&](const format::SumPart& part, const int64_t* terms) {
      const int64_t stride = part.offset_rows == 1 ? 0 : s.width;
      const float* offset = part.offset_offset == -1 ? nullptr : weights_ + part.offset_offset + first * stride;
      *next++ = {terms, part.adds, terms + part.adds, part.minuses, offset, stride, rows_in(part.sum),
                 rows_in(part.normed)};
    });
    sum_ = {sources, s.sources, parts, s.parts, images_, slice ? slice->count : format::rows_of_sum(operands), s.width,
            format::float_of_bits(s.eps_bits)};
    sum_operands_ = operands;
    sum_first_ = first;
    return sum_;
  }

  Words program_;
  const float *weights_, *pixels_;
  float *result_, *arena_;
  int64_t images_, channels_, size_;
  const int64_t* sum_operands_ = nullptr;
  int64_t sum_first_ = 0;
  SumNorm sum_{};
};

}  // namespace vitsparse::cpu
