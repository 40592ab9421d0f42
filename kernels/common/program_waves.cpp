// Race freedom: what the steps of one wave touch, compared. Values in the arena that are alive together lie apart, so
// after sorting by address only views of the same slot meet, and time grows with the words.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/common/program_refuse.h"
#include "kernels/common/program_validate.h"

namespace vitsparse::format {
namespace {

struct Access {
  View view;
  int64_t columns, begin, end;  // memory of the whole slot: numbers of the arena
  int64_t step;
  Op op;
  bool written;
};

bool apart(int64_t x, int64_t nx, int64_t y, int64_t ny) { return x + nx <= y || y + ny <= x; }

bool disjoint(const Access& a, const Access& b) {
  if (a.view.slot != b.view.slot) return apart(a.begin, a.end - a.begin, b.begin, b.end - b.begin);
  return apart(a.view.row0, a.view.rows, b.view.row0, b.view.rows) ||
         apart(a.view.col0, a.columns, b.view.col0, b.columns);
}

bool same(const View& a, const View& b) { return std::memcmp(&a, &b, sizeof(View)) == 0; }

class WaveChecker {
 public:
  explicit WaveChecker(Words program) : program_(program) {}

  void run() {
    int64_t wave = 0;
    for_each_step(program_, [&](const Step& step) {
      if (step.wave != wave) compare();
      wave = step.wave;
      op_ = step.op;
      collect(step);
      ++step_;
    });
    compare();
  }

 private:
  void touch(const View& view, int64_t columns, bool written) {
    const Slot s = slot(program_, view.slot);
    if (s.space == Space::constant) return;
    const bool result = s.space == Space::result;  // it lies apart from the arena: here, before it
    const int64_t begin = result ? -1 : s.offset, end = result ? 0 : s.offset + s.rows * s.width;
    accesses_.push_back({view, columns, begin, end, step_, op_, written});
  }
  void reads(const View& view, int64_t columns) { touch(view, columns, false); }
  void writes(const View& view, int64_t columns) { touch(view, columns, true); }

  void collect(const Step& step) {
    switch (step.op) {
      case Op::patches: return collect(read<Patches>(step.operands));
      case Op::linear: return collect(read<Linear>(step.operands));
      case Op::sum_norm: return collect_sum_norm(step.operands);
      case Op::attention: return collect(read<Attention>(step.operands));
      case Op::apply_pattern: return collect(read<ApplyPattern>(step.operands));
      case Op::mean_rows: return collect(read<MeanRows>(step.operands));
      case Op::fill: return collect(read<Fill>(step.operands));
      case Op::qkv_attention: return collect(read<QkvAttention>(step.operands));
      case Op::mlp: return collect_gathered<Mlp>(step.operands);
      case Op::norm_linear: return collect_gathered<NormLinear>(step.operands);
    }
  }
  void collect(const Patches& s) {
    const Header h = header(program_);
    writes(s.dst, h.channels * s.patch * s.patch);
  }
  void collect(const Linear& s) {
    reads(s.src, s.inputs);
    writes(s.dst, s.outputs);
  }
  void collect(const Attention& s) {
    for (const View& view : {s.q, s.k, s.v}) reads(view, s.heads * s.head_dim);
    writes(s.dst, s.heads * s.head_dim);
  }
  void collect(const ApplyPattern& s) {
    reads(s.v, s.heads * s.head_dim);
    writes(s.dst, s.heads * s.head_dim);
  }
  void collect(const MeanRows& s) {
    reads(s.src, s.width);
    writes(s.dst, s.width);
  }
  void collect(const Fill& s) { writes(s.dst, s.width); }
  void collect(const QkvAttention& s) {
    reads(s.src, s.inputs);
    writes(s.dst, s.heads * s.head_dim);
  }
  template <class T>
  void collect_gathered(const int64_t* operands) {
    const auto s = read<T>(operands);
    for (int64_t i = 0; i < s.adds + s.minuses; ++i) reads(source_behind<T>(operands, i), s.width);
    if (s.sum.wanted()) writes(s.sum, s.width);
    writes(s.dst, s.outputs);
  }

  void collect_sum_norm(const int64_t* operands) {
    const auto head = read<SumNorm>(operands);
    for (int64_t i = 0; i < head.sources; ++i) reads(source_of_sum(operands, i), head.width);
    for_each_part(operands, [&](const SumPart& part, const int64_t*) {
      for (const View& view : {part.sum, part.normed})
        if (view.wanted()) writes(view, head.width);
    });
    check_overwritten(operands);
  }

  // A source that a part overwrites is gone for the parts after it.
  void check_overwritten(const int64_t* operands) {
    const auto head = read<SumNorm>(operands);
    std::vector<View> gone;
    for_each_part(operands, [&](const SumPart& part, const int64_t* terms) {
      for (int64_t t = 0; t < part.adds + part.minuses && !gone.empty(); ++t)
        for (const View& view : gone)
          if (terms[t] < head.sources && same(view, source_of_sum(operands, terms[t])))
            refuse(step_, op_, "index of a term", "a source that no earlier part overwrites", terms[t]);
      for (int64_t i = 0; i < head.sources; ++i)
        for (const View& view : {part.sum, part.normed})
          if (same(view, source_of_sum(operands, i))) gone.push_back(view);
    });
  }

  void compare() {
    std::sort(accesses_.begin(), accesses_.end(),
              [](const Access& a, const Access& b) { return std::pair(a.begin, a.step) < std::pair(b.begin, b.step); });
    for (size_t i = 0; i < accesses_.size(); ++i)
      for (size_t j = i + 1; j < accesses_.size() && accesses_[j].begin < accesses_[i].end; ++j)
        compare(accesses_[i], accesses_[j]);
    accesses_.clear();
  }
  void compare(const Access& a, const Access& b) const {
    if ((!a.written && !b.written) || disjoint(a, b)) return;
    const Access& writer = a.written ? a : b;
    const Access& other = a.written ? b : a;
    if (a.step != b.step) refuse(writer.step, writer.op, "destination", touched_by(other.step), writer.view.slot);
    const bool in_place = writer.op == Op::sum_norm && !other.written && same(a.view, b.view);
    if (in_place) return;
    refuse(writer.step, writer.op, "destination", "memory that the step does not read", writer.view.slot);
  }
  static std::string touched_by(int64_t step) {
    return "memory that no other step of the wave touches, and step " + std::to_string(step) + " does: a slot";
  }

  Words program_;
  std::vector<Access> accesses_;
  int64_t step_ = 0;
  Op op_{};
};

}  // namespace

void check_waves(Words program) { WaveChecker(program).run(); }

}  // namespace vitsparse::format
