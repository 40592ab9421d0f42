// Whether a program may run. Both backends check the same words, and differ in what they know.
#pragma once
#include "kernels/common/program_format.h"

namespace vitsparse::format {

struct Target {
  int64_t (*matrix_size)(int64_t outputs, int64_t inputs);  // numbers that a weight matrix takes
  bool fused_steps;                                         // QKV_ATTENTION, MLP and NORM_LINEAR exist
};

// What a caller must supply and will get.
struct ProgramShape {
  int64_t channels, image_size;  // images [batch, channels, image_size, image_size]
  int64_t rows, width;           // result [batch, rows, width]
  int64_t waves;
};

// Checks every word, so that a program that passes cannot read or write outside the arena, the weights, the images and
// the result, whatever its origin; linear in the words. Throws std::invalid_argument naming the step, the field, and
// expected and found.
ProgramShape validate_program(Words program, const Target& target, int64_t weight_count);

// Checks that steps which may run at the same time leave each other's memory alone, and that no step writes what it
// still has to read, so that the result does not depend on who runs which when. For a validated program, once.
void check_waves(Words program);

}  // namespace vitsparse::format
