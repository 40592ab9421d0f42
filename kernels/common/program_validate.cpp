// Memory safety: every word that leads to memory is compared with the sizes at hand, in time linear in the words.
#include "kernels/common/program_validate.h"

#include <string>
#include <vector>

#include "kernels/common/program_refuse.h"

namespace vitsparse::format {
namespace {

// Extents are small enough that the product of three of them fits in 63 bits, so no check below can overflow.
constexpr int64_t max_extent = 1 << 20;
constexpr int64_t max_numbers = int64_t{1} << 28;  // values an image: no program may ask for any memory it likes

class Validator {
 public:
  Validator(Words program, const Target& target, int64_t weight_count)
      : program_(program), target_(target), weights_(weight_count) {}

  ProgramShape run() {
    check_header();
    for (int64_t i = 0; i < header_.slots; ++i) check_slot(i);
    const int64_t* words = first_step(program_);
    const int64_t* end = program_.data + program_.count;
    for (step_ = 0; step_ < header_.steps; ++step_) {
      require(end - words >= step_head, "length", "an opcode, a wave and an operand count", end - words);
      const Step step = step_at(words);
      op_ = step.op;
      require_range("wave", wave_, step_ == 0 ? 0 : wave_ + 1, step.wave);
      wave_ = step.wave;
      require(step.count >= 0 && step.count <= end - step.operands, "operand count", "no more than the words left",
              step.count);
      check_step(step);
      words = step.next();
    }
    step_ = -1;
    require(words == end, "length", "no words after the last step", end - words);
    const Slot output = slot(program_, header_.output_slot);
    return {header_.channels, header_.image_size, output.rows, output.width, wave_ + (header_.steps > 0)};
  }

 private:
  [[noreturn]] void fail(const char* field, const std::string& expected, int64_t found) const {
    refuse(step_, op_, field, expected, found);
  }
  void require(bool holds, const char* field, const char* expected, int64_t found) const {
    if (!holds) fail(field, expected, found);
  }
  void require_equal(const char* field, int64_t expected, int64_t found) const {
    if (expected != found) fail(field, std::to_string(expected), found);
  }
  void require_range(const char* field, int64_t low, int64_t high, int64_t found) const {
    if (found < low || found > high) fail(field, std::to_string(low) + " to " + std::to_string(high), found);
  }
  void require_extent(const char* field, int64_t found) const { require_range(field, 1, max_extent, found); }
  // `numbers` numbers from `offset` on lie within the weights.
  void require_weights(const char* field, int64_t offset, int64_t numbers) const {
    if (offset >= 0 && numbers <= weights_ && offset <= weights_ - numbers) return;
    fail(field, "an offset with " + std::to_string(numbers) + " numbers left, of " + std::to_string(weights_), offset);
  }
  void require_matrix(const char* field, int64_t offset, int64_t outputs, int64_t inputs) const {
    require_weights(field, offset, target_.matrix_size(outputs, inputs));
  }

  void check_header() {
    require(program_.count >= words_of<Header>, "length", "at least a header of 8 words", program_.count);
    header_ = header(program_);
    require_equal("magic", magic, header_.magic);
    require_equal("version", version, header_.version);
    require_range("slots", 1, max_extent, header_.slots);
    require_range("steps", 0, max_extent, header_.steps);
    require_range("arena numbers per image", 0, max_numbers, header_.arena_numbers);
    require_extent("channels", header_.channels);
    require_extent("image size", header_.image_size);
    require_range("output slot", 0, header_.slots - 1, header_.output_slot);
    require(program_.count - words_of<Header> >= header_.slots * words_of<Slot>, "length",
            "all the slots that the header announces", program_.count);
  }

  void check_slot(int64_t i) const {
    const Slot s = slot(program_, i);
    require_range("space of a slot", 0, 2, static_cast<int64_t>(s.space));
    require_extent("rows of a slot", s.rows);
    require_extent("width of a slot", s.width);
    require_range("numbers of a slot", 1, max_numbers, s.rows * s.width);
    if ((s.space == Space::result) != (i == header_.output_slot))
      fail("space of a slot", "2 (the result) for the output slot and for no other", static_cast<int64_t>(s.space));
    if (s.space == Space::constant) require_weights("offset of a constant slot", s.offset, s.rows * s.width);
    if (s.space == Space::arena) {
      require_range("offset of an arena slot", 0, header_.arena_numbers, s.offset);
      require_range("end of an arena slot", 0, header_.arena_numbers, s.offset + s.rows * s.width);
    }
  }

  void check_view(const char* field, const View& v, int64_t columns) const {
    require_range(field, 0, header_.slots - 1, v.slot);
    const Slot s = slot(program_, v.slot);
    require_range(field, 1, s.rows, v.rows);
    require_range(field, 0, s.rows - v.rows, v.row0);
    require_range(field, 1, s.width, columns);
    require_range(field, 0, s.width - columns, v.col0);
  }
  void check_written(const View& v, int64_t columns) const {
    check_view("destination", v, columns);
    require(slot(program_, v.slot).space != Space::constant, "destination", "a slot that is not constant", v.slot);
  }

  template <class T>
  T operands(const Step& step) const {
    require_equal("operand count", words_of<T>, step.count);
    return read<T>(step.operands);
  }

  void check_step(const Step& step) const {
    switch (step.op) {
      case Op::patches: return check(operands<Patches>(step));
      case Op::linear: return check(operands<Linear>(step));
      case Op::sum_norm: return check_sum_norm(step);
      case Op::attention: return check(operands<Attention>(step));
      case Op::apply_pattern: return check(operands<ApplyPattern>(step));
      case Op::mean_rows: return check(operands<MeanRows>(step));
      case Op::fill: return check(operands<Fill>(step));
      case Op::qkv_attention:
        require_fused(step.op);
        return check(operands<QkvAttention>(step));
      case Op::mlp:
        require_fused(step.op);
        return check_mlp(step);
      case Op::norm_linear:
        require_fused(step.op);
        return check_norm_linear(step);
    }
    fail("opcode", "1 to 10", static_cast<int64_t>(step.op));
  }
  void require_fused(Op op) const {
    require(target_.fused_steps, "opcode", "1 to 7: this step is not for this backend", static_cast<int64_t>(op));
  }

  void check(const Patches& s) const {
    require_range("patch", 1, header_.image_size, s.patch);
    require_equal("image size modulo patch", 0, header_.image_size % s.patch);
    const int64_t side = header_.image_size / s.patch;
    require_equal("rows of the destination", side * side, s.dst.rows);
    check_written(s.dst, header_.channels * s.patch * s.patch);
  }

  void check(const Linear& s) const {
    require_extent("inputs", s.inputs);
    require_extent("outputs", s.outputs);
    check_view("source", s.src, s.inputs);
    check_written(s.dst, s.outputs);
    require_equal("rows of the destination", s.src.rows, s.dst.rows);
    require_matrix("packed offset", s.packed_offset, s.outputs, s.inputs);
    if (s.bias_offset != -1) {
      if (s.bias_rows != 1) require_equal("bias rows (if not 1)", s.dst.rows, s.bias_rows);
      require_weights("bias offset", s.bias_offset, s.bias_rows * s.outputs);
    }
    require_range("activation", 0, 1, s.activation);
    require_range("accumulate", 0, 1, s.accumulate);
  }

  void check_sum_norm(const Step& step) const {
    require(step.count >= words_of<SumNorm>, "operand count", "at least 4", step.count);
    const auto head = read<SumNorm>(step.operands);
    require_range("number of sources", 0, max_extent, head.sources);
    const int64_t left = step.count - words_of<SumNorm> - head.sources * words_of<View>;
    require(left >= words_of<SumPart>, "operand count", "words for all sources and a part", step.count);
    require_range("number of parts", 1, left / words_of<SumPart>, head.parts);
    const int64_t rows = rows_of_sum(step.operands);
    for (int64_t i = 0; i < head.sources; ++i) {
      const View source = source_of_sum(step.operands, i);
      check_view("source", source, head.width);
      require_equal("rows of a source", rows, source.rows);
    }
    check_parts(head, rows, step.next() - left, left);
  }
  // `left` words from `words` on are exactly the parts.
  void check_parts(const SumNorm& head, int64_t rows, const int64_t* words, int64_t left) const {
    static thread_local std::vector<char> stores;  // kept, so that checking allocates nothing from the second call on
    stores.resize(head.parts);
    for (int64_t i = 0; i < head.parts; ++i) {
      require(left >= words_of<SumPart>, "operand count", "words for all parts", left);
      const auto part = read<SumPart>(words);
      words += words_of<SumPart>;
      left -= words_of<SumPart>;
      check_part(part, head.width, rows);
      require_range("number of terms added", 0, left, part.adds);
      require_range("number of terms taken away", 0, left - part.adds, part.minuses);
      const int64_t* end = words + part.adds + part.minuses;
      left -= end - words;
      for (; words < end; ++words) {
        require_range("index of a term", 0, head.sources + i - 1, *words);
        require(*words < head.sources || stores[*words - head.sources], "index of a term",
                "a source, or an earlier part that stores its sum", *words);
      }
      stores[i] = part.sum.wanted();
    }
    require(left == 0, "operand count", "no words after the last part", left);
  }
  void check_part(const SumPart& part, int64_t width, int64_t rows) const {
    require(part.sum.wanted() || part.normed.wanted(), "destination", "a sum or a normed slot", -1);
    for (const View& written : {part.sum, part.normed}) {
      if (!written.wanted()) continue;
      check_written(written, width);
      require_equal("rows of the destination", rows, written.rows);
    }
    check_offset(part.offset_offset, part.offset_rows, rows, width);
  }

  void check(const Attention& s) const {
    require_extent("heads", s.heads);
    require_extent("head dimension", s.head_dim);
    const int64_t columns = s.heads * s.head_dim;
    check_written(s.dst, columns);
    for (const View& read : {s.q, s.k, s.v}) check_view("source", read, columns);
    require_equal("rows of the destination", s.q.rows, s.dst.rows);
    require_equal("rows of the values", s.k.rows, s.v.rows);
  }

  void check(const ApplyPattern& s) const {
    require_extent("heads", s.heads);
    require_extent("head dimension", s.head_dim);
    const int64_t columns = s.heads * s.head_dim;
    check_view("source", s.v, columns);
    check_written(s.dst, columns);
    require_weights("pattern offset", s.pattern_offset, s.heads * s.dst.rows * s.v.rows);
  }

  void check(const MeanRows& s) const {
    check_view("source", s.src, s.width);
    check_written(s.dst, s.width);
    require_equal("rows of the destination", 1, s.dst.rows);
  }

  void check(const Fill& s) const {
    check_written(s.dst, s.width);
    require_weights("constant offset", s.constant_offset, s.dst.rows * s.width);
  }

  void check(const QkvAttention& s) const {
    require_extent("inputs", s.inputs);
    require_extent("heads", s.heads);
    require_extent("head dimension", s.head_dim);
    const int64_t columns = s.heads * s.head_dim;
    check_view("source", s.src, s.inputs);
    check_written(s.dst, columns);
    require_equal("rows of the destination", s.src.rows, s.dst.rows);
    require_matrix("weight offset", s.weight_offset, 3 * columns, s.inputs);
    if (s.bias_offset != -1) require_weights("bias offset", s.bias_offset, 3 * columns);
  }

  // A step that makes a sum for itself, and whose sources follow its operands.
  template <class T>
  T check_gathered(const Step& step) const {
    require(step.count >= words_of<T>, "operand count", "words for all operands", step.count);
    const auto s = read<T>(step.operands);
    const int64_t views = (step.count - words_of<T>) / words_of<View>;
    require_range("number of terms added", 0, views, s.adds);
    require_range("number of terms taken away", 0, views - s.adds, s.minuses);
    require_equal("operand count", words_of<T> + (s.adds + s.minuses) * words_of<View>, step.count);
    require_extent("width", s.width);
    require_extent("outputs", s.outputs);
    check_written(s.dst, s.outputs);
    const int64_t rows = s.dst.rows;
    if (s.sum.wanted()) {
      check_written(s.sum, s.width);
      require_equal("rows of the sum", rows, s.sum.rows);
    }
    for (int64_t i = 0; i < s.adds + s.minuses; ++i) {
      const View source = source_behind<T>(step.operands, i);
      check_view("source", source, s.width);
      require_equal("rows of a source", rows, source.rows);
    }
    check_offset(s.offset_offset, s.offset_rows, rows, s.width);
    return s;
  }
  void check_offset(int64_t offset, int64_t offset_rows, int64_t rows, int64_t width) const {
    if (offset == -1) return;
    if (offset_rows != 1) require_equal("offset rows (if not 1)", rows, offset_rows);
    require_weights("offset", offset, offset_rows * width);
  }

  void check_mlp(const Step& step) const {
    const Mlp s = check_gathered<Mlp>(step);
    require_extent("hidden units", s.hidden);
    require_matrix("first weight offset", s.weight1_offset, s.hidden, s.width);
    require_weights("first bias offset", s.bias1_offset, s.hidden);
    require_matrix("second weight offset", s.weight2_offset, s.outputs, s.hidden);
    if (s.bias2_offset != -1) require_weights("second bias offset", s.bias2_offset, s.outputs);
  }

  void check_norm_linear(const Step& step) const {
    const NormLinear s = check_gathered<NormLinear>(step);
    require_matrix("packed offset", s.packed_offset, s.outputs, s.width);
    require_equal("bias rows", 1, s.bias_rows);
    if (s.bias_offset != -1) require_weights("bias offset", s.bias_offset, s.outputs);
    require_range("activation", 0, 1, s.activation);
  }

  Words program_;
  const Target& target_;
  int64_t weights_;
  Header header_{};
  int64_t step_ = -1, wave_ = 0;
  Op op_{};
};

}  // namespace

ProgramShape validate_program(Words program, const Target& target, int64_t weight_count) {
  return Validator(program, target, weight_count).run();
}

}  // namespace vitsparse::format
