#include "kernels/cpu/program.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/cpu/cost.h"
#include "kernels/cpu/program_format.h"
#include "kernels/cpu/workspace.h"

namespace vitsparse::cpu {
namespace {

// Images are run together until a product has about this many rows: enough to reuse each weight that was fetched, few
// enough for the activations to stay in the L2 cache.
constexpr int64_t rows_together = 128;

// Runs all steps over `images` images; step by step on several threads if it is given them.
class Machine {
 public:
  Machine(const ProgramRun& run, int64_t first_image, int64_t images, const Threads& threads)
      : program_(run.program), weights_(run.weights), count_(images), threads_(threads) {
    const format::Header h = format::header(program_);
    const format::Slot output = format::slot(program_, h.output_slot);
    channels_ = h.channels;
    size_ = h.image_size;
    images_ = run.images + first_image * channels_ * size_ * size_;
    result_ = run.result + first_image * output.rows * output.width;
    arena_ = workspace(Purpose::program, h.arena_floats * images);
  }

  void run_all() {
    const int64_t steps = format::header(program_).steps;
    const int64_t* words = format::first_step(program_);
    for (int64_t i = 0; i < steps; ++i) {
      const format::Step step = format::step_at(words);
      run_step(step);
      words = step.next();
    }
  }

 private:
  MutableRows rows_of(const format::View& view) const {
    const format::Slot s = format::slot(program_, view.slot);
    const int64_t inside = view.row0 * s.width + view.col0;
    switch (s.space) {
      case format::Space::arena: return {arena_ + s.offset * count_ + inside, s.rows * s.width, s.width};
      case format::Space::result: return {result_ + inside, s.rows * s.width, s.width};
      default: return {const_cast<float*>(weights_) + s.offset + inside, 0, s.width};  // validated: never written
    }
  }
  Rows source(const format::View& view) const {
    const MutableRows rows = rows_of(view);
    return {rows.data, rows.image_stride, rows.row_stride};
  }
  MutableRows optional(const format::View& view) const { return view.slot == -1 ? MutableRows{} : rows_of(view); }

  // Runs kernel(op, begin, end) over all tasks, on several threads where the work is worth it.
  template <class Operation>
  void run_tasks(const Operation& op, void (*kernel)(const Operation&, int64_t, int64_t)) {
    if (threads_.count == 1 || flops(op) < worth_a_thread) return kernel(op, 0, tasks(op));
    struct State {
      const Operation& op;
      void (*kernel)(const Operation&, int64_t, int64_t);
    } state{op, kernel};
    threads_.parallel_for(tasks(op), [](void* s, int64_t begin, int64_t end) {
      static_cast<State*>(s)->kernel(static_cast<State*>(s)->op, begin, end);
    }, &state);
  }

  void run_step(const format::Step& step) {
    using format::Op;
    switch (step.op) {
      case Op::patches: return run(format::read<format::Patches>(step.operands));
      case Op::linear: return run(format::read<format::Linear>(step.operands));
      case Op::sum_norm: return run_sum_norm(step.operands);
      case Op::attention: return run(format::read<format::Attention>(step.operands));
      case Op::apply_pattern: return run(format::read<format::ApplyPattern>(step.operands));
      case Op::mean_rows: return run(format::read<format::MeanRows>(step.operands));
      case Op::fill: return run(format::read<format::Fill>(step.operands));
    }
  }

  void run(const format::Patches& s) {
    const MutableRows dst = rows_of(s.dst);
    const int64_t side = size_ / s.patch;
    const auto copy = [&](auto patch) {  // a compile-time patch makes the copies single moves
      for (int64_t image = 0; image < count_; ++image)
        for (int64_t r = 0; r < side * side; ++r) {
          float* out = dst.row(image, r);
          for (int64_t c = 0; c < channels_; ++c) {
            const float* in = images_ + ((image * channels_ + c) * size_ + r / side * patch) * size_ + r % side * patch;
            for (int64_t y = 0; y < patch; ++y, in += size_, out += patch) std::memcpy(out, in, patch * sizeof(float));
          }
        }
    };
    switch (s.patch) {
      case 4: return copy(std::integral_constant<int64_t, 4>{});
      case 8: return copy(std::integral_constant<int64_t, 8>{});
      case 16: return copy(std::integral_constant<int64_t, 16>{});
      default: return copy(s.patch);
    }
  }

  void run(const format::Linear& s) {
    const Linear op{source(s.src), rows_of(s.dst), count_, s.src.rows, s.inputs, s.outputs, weights_ + s.packed_offset,
                    s.bias_offset == -1 ? nullptr : weights_ + s.bias_offset, s.bias_rows == 1 ? 0 : s.outputs,
                    static_cast<Activation>(s.activation), s.accumulate != 0};
    run_tasks(op, linear);
  }

  void run_sum_norm(const int64_t* operands) {
    const int64_t count = operands[0];
    const auto tail = format::read<format::SumNormTail>(operands + 1 + count * format::words_of<format::View>);
    constexpr int64_t few = 32;
    Rows on_stack[few];
    std::vector<Rows> many(count > few ? count : 0);
    Rows* sources = count > few ? many.data() : on_stack;
    for (int64_t i = 0; i < count; ++i)
      sources[i] = source(format::read<format::View>(operands + 1 + i * format::words_of<format::View>));
    const format::View& dst = tail.sum.slot != -1 ? tail.sum : tail.normed;
    const SumNorm op{sources, count, tail.offset_offset == -1 ? nullptr : weights_ + tail.offset_offset,
                     optional(tail.sum), optional(tail.normed), count_, dst.rows, tail.width,
                     format::float_of_bits(tail.eps_bits)};
    run_tasks(op, sum_norm);
  }

  void run(const format::Attention& s) {
    const Attention op{source(s.q), source(s.k), source(s.v), rows_of(s.dst), count_, s.q.rows, s.k.rows, s.heads,
                       s.head_dim, format::float_of_bits(s.scale_bits)};
    run_tasks(op, attention);
  }

  void run(const format::ApplyPattern& s) {
    const ApplyPattern op{weights_ + s.pattern_offset, source(s.v), rows_of(s.dst), count_, s.dst.rows, s.v.rows,
                          s.heads, s.head_dim};
    run_tasks(op, apply_pattern);
  }

  void run(const format::MeanRows& s) {
    const Rows src = source(s.src);
    const MutableRows dst = rows_of(s.dst);
    const float scale = 1.f / static_cast<float>(s.src.rows);
    for (int64_t image = 0; image < count_; ++image) {
      float* out = dst.row(image, 0);
      std::fill(out, out + s.width, 0.f);
      for (int64_t r = 0; r < s.src.rows; ++r)
        for (int64_t c = 0; c < s.width; ++c) out[c] += src.row(image, r)[c];
      for (int64_t c = 0; c < s.width; ++c) out[c] *= scale;
    }
  }

  void run(const format::Fill& s) {
    const MutableRows dst = rows_of(s.dst);
    for (int64_t image = 0; image < count_; ++image)
      for (int64_t r = 0; r < s.dst.rows; ++r)
        std::memcpy(dst.row(image, r), weights_ + s.constant_offset + r * s.width, s.width * sizeof(float));
  }

  Words program_;
  const float *weights_, *images_ = nullptr;
  float *result_ = nullptr, *arena_ = nullptr;
  int64_t count_, channels_ = 0, size_ = 0;
  const Threads& threads_;
};

int64_t images_together(Words program) {
  int64_t rows = 1;
  for (int64_t i = 0; i < format::header(program).slots; ++i) rows = std::max(rows, format::slot(program, i).rows);
  return std::max<int64_t>(1, rows_together / rows);
}

// Images [begin, end) on this thread, a few at a time, in groups of nearly equal size.
void run_serially(const ProgramRun& run, int64_t begin, int64_t end) {
  const int64_t count = end - begin, together = images_together(run.program);
  const int64_t groups = (count + together - 1) / together;
  const Threads alone{1, nullptr};
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = begin + count * g / groups, next = begin + count * (g + 1) / groups;
    Machine(run, first, next - first, alone).run_all();
  }
}

}  // namespace

// A batch that fills the threads evenly is split over them, each running the whole program without waiting for the
// others; a smaller one is run together, with threads inside the larger steps.
void run_program(const ProgramRun& run, const Threads& threads) {
  if (run.batch == 0) return;
  if (threads.count == 1) return run_serially(run, 0, run.batch);
  if (run.batch >= 2 * threads.count || run.batch % threads.count == 0) {
    auto state = run;
    return threads.parallel_for(run.batch, [](void* s, int64_t begin, int64_t end) {
      run_serially(*static_cast<const ProgramRun*>(s), begin, end);
    }, &state);
  }
  Machine(run, 0, run.batch, threads).run_all();
}

}  // namespace vitsparse::cpu
