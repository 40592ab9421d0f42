// A compiled plan as a program: a few dozen steps that a backend runs over a batch of images in one call.
//
// A program is a vector of int64 words (floats as their float32 bit pattern):
//   header  MAGIC, VERSION, slots, steps, arena numbers per image, channels, image size, output slot
//   slots   4 words each: space, offset, rows, width
//             space 0  arena: [batch, rows, width] at arena + offset * batch; slots of different lifetimes may overlap
//             space 1  constant [rows, width] at weights + offset, the same for each image; read-only
//             space 2  the result [batch, rows, width]; the output slot alone
//   steps   opcode, wave, number of operand words, operands (the structs below, in word order). The first wave is 0, and
//           each step has the wave of the step before or the next one. Steps of one wave may run at the same time: none
//           writes what another of them reads or writes.
// Offsets and sizes count numbers: float32 on CPU, the dtype of the images on CUDA. A weight matrix is packed in panels
// on CPU (kernels/cpu/layout.h) and [outputs][inputs rounded up to 8], padded with zeros, on CUDA.
//
// Validation and execution read the words through the functions below, on the device too.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define VITSPARSE_HD __host__ __device__
#else
#define VITSPARSE_HD
#endif

namespace vitsparse::format {

constexpr int64_t magic = 0x76737067;  // "vspg"
constexpr int64_t version = 2;

enum class Op : int64_t {
  patches = 1, linear, sum_norm, attention, apply_pattern, mean_rows, fill,
  qkv_attention, mlp, norm_linear  // CUDA alone
};
enum class Space : int64_t { arena = 0, constant = 1, result = 2 };

struct Words {
  const int64_t* data;
  int64_t count;
};

struct Header {
  int64_t magic, version, slots, steps, arena_numbers, channels, image_size, output_slot;
};
struct Slot {
  Space space;
  int64_t offset, rows, width;
};
struct View {  // rows [row0, row0 + rows) of a slot, columns from col0 on; the step says how many
  int64_t slot, row0, rows, col0;
  VITSPARSE_HD bool wanted() const { return slot != -1; }  // for views that may be left out
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
struct QkvAttention {  // dst = attention of q, k, v = src W^T + bias; W [3 * heads * head_dim][inputs]; bias_offset -1: none
  View src, dst;
  int64_t inputs, heads, head_dim, weight_offset, bias_offset, scale_bits;
};
struct Mlp {  // dst = gelu(norm(sum) W1^T + b1) W2^T + b2, sum if wanted; bias2_offset, offset_offset -1: none
  int64_t adds, minuses, width, eps_bits, hidden, outputs;
  int64_t weight1_offset, bias1_offset, weight2_offset, bias2_offset, offset_offset, offset_rows;
  View sum, dst;  // then the views that the sum adds, then those that it takes away
};
struct NormLinear {  // dst = activation(norm(sum) W^T + b), sum if wanted; bias_offset, offset_offset -1: none
  int64_t adds, minuses, width, eps_bits, offset_offset, offset_rows;
  View sum, dst;
  int64_t outputs, packed_offset, bias_offset, bias_rows, activation;  // bias_rows 1; then the views, as in Mlp
};

template <class T>
VITSPARSE_HD T read(const int64_t* words) {
  static_assert(sizeof(T) % sizeof(int64_t) == 0);
  T value;
  __builtin_memcpy(&value, __builtin_assume_aligned(words, alignof(int64_t)), sizeof(T));  // else byte by byte on devices
  return value;
}
template <class T>
constexpr int64_t words_of = sizeof(T) / sizeof(int64_t);

VITSPARSE_HD inline float float_of_bits(int64_t bits) {
  const uint32_t low = static_cast<uint32_t>(bits);
  float value;
  __builtin_memcpy(&value, &low, sizeof(value));
  return value;
}

VITSPARSE_HD inline Header header(const int64_t* program) { return read<Header>(program); }
inline Header header(Words program) { return header(program.data); }
VITSPARSE_HD inline Slot slot(const int64_t* program, int64_t i) {
  return read<Slot>(program + words_of<Header> + i * words_of<Slot>);
}
inline Slot slot(Words program, int64_t i) { return slot(program.data, i); }
inline const int64_t* first_step(Words program) {
  return program.data + words_of<Header> + header(program).slots * words_of<Slot>;
}

struct Step {
  Op op;
  int64_t wave;
  int64_t count;
  const int64_t* operands;
  VITSPARSE_HD const int64_t* next() const { return operands + count; }
};
constexpr int64_t step_head = 3;  // words before the operands
VITSPARSE_HD inline Step step_at(const int64_t* words) {
  return {static_cast<Op>(words[0]), words[1], words[2], words + step_head};
}

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

VITSPARSE_HD inline View source_of_sum(const int64_t* operands, int64_t i) {
  return read<View>(operands + words_of<SumNorm> + i * words_of<View>);
}
// Of a step that makes a sum for itself, Mlp or NormLinear: how many sources it has, and one of them.
template <class T>
VITSPARSE_HD int64_t gathers(const int64_t* operands) {
  const auto s = read<T>(operands);
  return s.adds + s.minuses;
}
template <class T>
VITSPARSE_HD View source_behind(const int64_t* operands, int64_t i) {
  return read<View>(operands + words_of<T> + i * words_of<View>);
}
// The words of the first part of a SUM_NORM step.
VITSPARSE_HD inline const int64_t* parts_of_sum(const int64_t* operands) {
  return operands + words_of<SumNorm> + read<SumNorm>(operands).sources * words_of<View>;
}
VITSPARSE_HD inline const int64_t* next_part(const int64_t* words, const SumPart& part) {
  return words + words_of<SumPart> + part.adds + part.minuses;
}
VITSPARSE_HD inline int64_t rows_of_sum(const int64_t* operands) {
  const auto first = read<SumPart>(parts_of_sum(operands));
  return (first.sum.wanted() ? first.sum : first.normed).rows;
}
// Calls body(part, its indices) for each part of a SUM_NORM step, in order.
template <class Body>
void for_each_part(const int64_t* operands, const Body& body) {
  const int64_t* words = parts_of_sum(operands);
  for (int64_t i = 0, parts = read<SumNorm>(operands).parts; i < parts; ++i) {
    const auto part = read<SumPart>(words);
    body(part, words + words_of<SumPart>);
    words = next_part(words, part);
  }
}

}  // namespace vitsparse::format
