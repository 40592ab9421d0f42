// The words of a program, as structs in word order. Validation and execution read them through the same functions.
#pragma once
#include <cstring>

#include "kernels/cpu/program.h"

namespace vitsparse::cpu::format {

constexpr int64_t magic = 0x76737067;  // "vspg"
constexpr int64_t version = 2;

enum class Op : int64_t { patches = 1, linear, sum_norm, attention, apply_pattern, mean_rows, fill };
enum class Space : int64_t { arena = 0, constant = 1, result = 2 };

struct Header {
  int64_t magic, version, slots, steps, arena_floats, channels, image_size, output_slot;
};
struct Slot {
  Space space;
  int64_t offset, rows, width;
};
struct View {  // rows [row0, row0 + rows) of a slot, columns from col0 on; the step says how many
  int64_t slot, row0, rows, col0;
  bool wanted() const { return slot != -1; }  // for views that may be left out
};

struct Patches {  // images -> row-major patches, each flattened (channel, y, x)
  View dst;
  int64_t patch;
};
struct Linear {  // dst = activation(src W^T + bias) (+ dst); bias_offset -1: none; bias_rows 1, or one for each row
  View src, dst;
  int64_t inputs, outputs, packed_offset, bias_offset, bias_rows, activation, accumulate;
};
struct SumNorm {  // then `sources` views, then `parts` parts
  int64_t sources, parts, width, eps_bits;
};
struct SumPart {  // sum and its norm, each if wanted; offset_offset -1: none; offset_rows 1, or one for each row
  int64_t adds, minuses, offset_offset, offset_rows;
  View sum, normed;  // then the indices of what is added and of what is taken away: source i, or an earlier part's sum
};
struct Attention {  // heads side by side in the columns of each view
  View q, k, v, dst;
  int64_t heads, head_dim, scale_bits;
};
struct ApplyPattern {  // pattern [heads, dst rows, v rows] in the weights
  int64_t pattern_offset;
  View v, dst;
  int64_t heads, head_dim;
};
struct MeanRows {  // dst (one row) = mean over the rows of src
  View src, dst;
  int64_t width;
};
struct Fill {  // copies the constant [rows, width] into every image
  int64_t constant_offset;
  View dst;
  int64_t width;
};

template <class T>
T read(const int64_t* words) {
  static_assert(sizeof(T) % sizeof(int64_t) == 0);
  T value;
  std::memcpy(&value, words, sizeof(T));
  return value;
}
template <class T>
constexpr int64_t words_of = sizeof(T) / sizeof(int64_t);

inline float float_of_bits(int64_t bits) {
  const uint32_t low = static_cast<uint32_t>(bits);
  float value;
  std::memcpy(&value, &low, sizeof(value));
  return value;
}

inline Header header(Words program) { return read<Header>(program.data); }
inline Slot slot(Words program, int64_t i) {
  return read<Slot>(program.data + words_of<Header> + i * words_of<Slot>);
}
inline const int64_t* first_step(Words program) {
  return program.data + words_of<Header> + header(program).slots * words_of<Slot>;
}

struct Step {
  Op op;
  int64_t wave;
  int64_t count;
  const int64_t* operands;
  const int64_t* next() const { return operands + count; }
};
constexpr int64_t step_head = 3;  // words before the operands
inline Step step_at(const int64_t* words) { return {static_cast<Op>(words[0]), words[1], words[2], words + step_head}; }

// Calls body(step) for each step, in order.
template <class Body>
void for_each_step(Words program, const Body& body) {
  const int64_t* words = first_step(program);
  for (int64_t i = 0, steps = header(program).steps; i < steps; ++i) {
    const Step step = step_at(words);
    body(step);
    words = step.next();
  }
}

inline int64_t wave_count(Words program) {
  int64_t count = 0;
  for_each_step(program, [&](const Step& step) { count = step.wave + 1; });
  return count;
}

inline View source_of_sum(const int64_t* operands, int64_t i) {
  return read<View>(operands + words_of<SumNorm> + i * words_of<View>);
}
inline SumPart first_part(const int64_t* operands) {
  return read<SumPart>(operands + words_of<SumNorm> + read<SumNorm>(operands).sources * words_of<View>);
}
// Calls body(part, its indices) for each part of a SUM_NORM step, in order.
template <class Body>
void for_each_part(const int64_t* operands, const Body& body) {
  const auto head = read<SumNorm>(operands);
  const int64_t* words = operands + words_of<SumNorm> + head.sources * words_of<View>;
  for (int64_t i = 0; i < head.parts; ++i) {
    const auto part = read<SumPart>(words);
    body(part, words + words_of<SumPart>);
    words += words_of<SumPart> + part.adds + part.minuses;
  }
}

}  // namespace vitsparse::cpu::format
