#include <stdexcept>
#include <string>

#include "kernels/cpu/layout.h"
#include "kernels/cpu/program_format.h"

namespace vitsparse::cpu {
namespace {

using namespace format;

// Extents are small enough that the product of three of them fits in 63 bits, so no check below can overflow.
constexpr int64_t max_extent = 1 << 20;
constexpr int64_t max_arena = int64_t{1} << 32;

const char* name_of(Op op) {
  static const char* names[] = {"PATCHES", "LINEAR", "SUM_NORM", "ATTENTION", "APPLY_PATTERN", "MEAN_ROWS", "FILL"};
  const int64_t i = static_cast<int64_t>(op) - 1;
  return i >= 0 && i < 7 ? names[i] : "unknown";
}

class Validator {
 public:
  Validator(Words program, int64_t weight_count) : program_(program), weights_(weight_count) {}

  ProgramShape run() {
    check_header();
    for (int64_t i = 0; i < header_.slots; ++i) check_slot(i);
    const int64_t* words = first_step(program_);
    const int64_t* end = program_.data + program_.count;
    for (step_ = 0; step_ < header_.steps; ++step_) {
      require(end - words >= 2, "length", "an opcode and an operand count", end - words);
      const Step step = step_at(words);
      op_ = step.op;
      require(step.count >= 0 && step.count <= end - step.operands, "operand count", "no more than the words left",
              step.count);
      check_step(step);
      words = step.next();
    }
    step_ = -1;
    require(words == end, "length", "no words after the last step", end - words);
    const Slot output = slot(program_, header_.output_slot);
    return {header_.channels, header_.image_size, output.rows, output.width};
  }

 private:
  [[noreturn]] void fail(const char* field, const std::string& expected, int64_t found) const {
    const std::string where = step_ < 0 ? "" : "step " + std::to_string(step_) + " (" + name_of(op_) + "), ";
    throw std::invalid_argument("program: " + where + field + ": expected " + expected + ", found " +
                                std::to_string(found));
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
  // `floats` floats from `offset` on lie within the weights.
  void require_weights(const char* field, int64_t offset, int64_t floats) const {
    if (offset >= 0 && floats <= weights_ && offset <= weights_ - floats) return;
    fail(field, "an offset with " + std::to_string(floats) + " floats left, of " + std::to_string(weights_), offset);
  }

  void check_header() {
    require(program_.count >= words_of<Header>, "length", "at least a header of 8 words", program_.count);
    header_ = header(program_);
    require_equal("magic", magic, header_.magic);
    require_equal("version", version, header_.version);
    require_range("slots", 1, max_extent, header_.slots);
    require_range("steps", 0, max_extent, header_.steps);
    require_range("arena floats per image", 0, max_arena, header_.arena_floats);
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
    if ((s.space == Space::result) != (i == header_.output_slot))
      fail("space of a slot", "2 (the result) for the output slot and for no other", static_cast<int64_t>(s.space));
    if (s.space == Space::constant) require_weights("offset of a constant slot", s.offset, s.rows * s.width);
    if (s.space == Space::arena) {
      require_range("offset of an arena slot", 0, header_.arena_floats, s.offset);
      require_range("end of an arena slot", 0, header_.arena_floats, s.offset + s.rows * s.width);
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

  // A step must not read what it writes: rows are computed in no particular order.
  void check_disjoint(const View& a, int64_t a_columns, const View& b, int64_t b_columns) const {
    const auto apart = [](int64_t x, int64_t nx, int64_t y, int64_t ny) { return x + nx <= y || y + ny <= x; };
    bool disjoint;
    if (a.slot == b.slot) {
      disjoint = apart(a.row0, a.rows, b.row0, b.rows) || apart(a.col0, a_columns, b.col0, b_columns);
    } else {
      const Slot s = slot(program_, a.slot), t = slot(program_, b.slot);
      disjoint = s.space != Space::arena || t.space != Space::arena ||
                 apart(s.offset, s.rows * s.width, t.offset, t.rows * t.width);
    }
    require(disjoint, "destination", "memory that the step does not read", b.slot);
  }

  template <class T>
  T operands(const Step& step) const {
    require_equal("operand count", words_of<T>, step.count);
    return read<T>(step.operands);
  }

  void check_step(const Step& step) const {
    switch (step.op) {
      case Op::patches: return check(operands<Patches>(step));
      case Op::linear: return check(operands<format::Linear>(step));
      case Op::sum_norm: return check_sum_norm(step);
      case Op::attention: return check(operands<format::Attention>(step));
      case Op::apply_pattern: return check(operands<format::ApplyPattern>(step));
      case Op::mean_rows: return check(operands<MeanRows>(step));
      case Op::fill: return check(operands<Fill>(step));
    }
    fail("opcode", "1 to 7", static_cast<int64_t>(step.op));
  }

  void check(const Patches& s) const {
    require_range("patch", 1, header_.image_size, s.patch);
    require_equal("image size modulo patch", 0, header_.image_size % s.patch);
    const int64_t side = header_.image_size / s.patch;
    require_equal("rows of the destination", side * side, s.dst.rows);
    check_written(s.dst, header_.channels * s.patch * s.patch);
  }

  void check(const format::Linear& s) const {
    require_extent("inputs", s.inputs);
    require_extent("outputs", s.outputs);
    check_view("source", s.src, s.inputs);
    check_written(s.dst, s.outputs);
    require_equal("rows of the destination", s.src.rows, s.dst.rows);
    check_disjoint(s.src, s.inputs, s.dst, s.outputs);
    require_weights("packed offset", s.packed_offset, packed_size(s.outputs, s.inputs));
    if (s.bias_offset != -1) {
      if (s.bias_rows != 1) require_equal("bias rows (if not 1)", s.dst.rows, s.bias_rows);
      require_weights("bias offset", s.bias_offset, s.bias_rows * s.outputs);
    }
    require_range("activation", 0, 1, s.activation);
    require_range("accumulate", 0, 1, s.accumulate);
  }

  void check_sum_norm(const Step& step) const {
    require(step.count >= 1, "operand count", "at least 1", step.count);
    const int64_t count = step.operands[0];
    require_range("number of sources", 0, max_extent, count);
    require_equal("operand count", 1 + count * words_of<View> + words_of<SumNormTail>, step.count);
    const auto tail = read<SumNormTail>(step.operands + 1 + count * words_of<View>);
    require_extent("width", tail.width);
    require(tail.sum.slot != -1 || tail.normed.slot != -1, "destination", "a sum or a normed slot", -1);
    const View dst = tail.sum.slot != -1 ? tail.sum : tail.normed;
    for (const View& written : {tail.sum, tail.normed}) {
      if (written.slot == -1) continue;
      check_written(written, tail.width);
      require_equal("rows of the destination", dst.rows, written.rows);
    }
    if (tail.sum.slot != -1 && tail.normed.slot != -1) check_disjoint(tail.sum, tail.width, tail.normed, tail.width);
    if (tail.offset_offset != -1) require_weights("offset", tail.offset_offset, dst.rows * tail.width);
    for (int64_t i = 0; i < count; ++i)
      check_source(read<View>(step.operands + 1 + i * words_of<View>), tail, dst.rows);
  }
  void check_source(const View& source, const SumNormTail& tail, int64_t rows) const {
    check_view("source", source, tail.width);
    require_equal("rows of a source", rows, source.rows);
    for (const View& written : {tail.sum, tail.normed}) {  // the very same view may be overwritten row by row
      const bool same = std::memcmp(&written, &source, sizeof(View)) == 0;
      if (written.slot != -1 && !same) check_disjoint(source, tail.width, written, tail.width);
    }
  }

  void check(const format::Attention& s) const {
    require_extent("heads", s.heads);
    require_extent("head dimension", s.head_dim);
    const int64_t columns = s.heads * s.head_dim;
    check_written(s.dst, columns);
    for (const View& read : {s.q, s.k, s.v}) {
      check_view("source", read, columns);
      check_disjoint(read, columns, s.dst, columns);
    }
    require_equal("rows of the destination", s.q.rows, s.dst.rows);
    require_equal("rows of the values", s.k.rows, s.v.rows);
  }

  void check(const format::ApplyPattern& s) const {
    require_extent("heads", s.heads);
    require_extent("head dimension", s.head_dim);
    const int64_t columns = s.heads * s.head_dim;
    check_view("source", s.v, columns);
    check_written(s.dst, columns);
    check_disjoint(s.v, columns, s.dst, columns);
    require_weights("pattern offset", s.pattern_offset, s.heads * s.dst.rows * s.v.rows);
  }

  void check(const MeanRows& s) const {
    check_view("source", s.src, s.width);
    check_written(s.dst, s.width);
    require_equal("rows of the destination", 1, s.dst.rows);
    check_disjoint(s.src, s.width, s.dst, s.width);
  }

  void check(const Fill& s) const {
    check_written(s.dst, s.width);
    require_weights("constant offset", s.constant_offset, s.dst.rows * s.width);
  }

  Words program_;
  int64_t weights_;
  Header header_{};
  int64_t step_ = -1;
  Op op_{};
};

}  // namespace

ProgramShape validate_program(Words program, int64_t weight_count) { return Validator(program, weight_count).run(); }

}  // namespace vitsparse::cpu
