// Runs a compiled plan, a program of a few dozen steps, over a batch of images in one call.
//
// A program is a vector of int64 words (floats as their float32 bit pattern):
//   header  MAGIC, VERSION, slots, steps, arena floats per image, channels, image size, output slot
//   slots   4 words each: space, offset, rows, width
//             space 0  arena: [batch, rows, width] at arena + offset * batch; slots of different lifetimes may overlap
//             space 1  constant [rows, width] at weights + offset, the same for each image; read-only
//             space 2  the result [batch, rows, width]; the output slot alone
//   steps   opcode, wave, number of operand words, operands (program_format.h). The first wave is 0, and each step has
//           the wave of the step before or the next one. Steps of one wave may run at the same time: none writes what
//           another of them reads or writes.
#pragma once
#include <cstdint>

namespace vitsparse::cpu {

struct Words {
  const int64_t* data;
  int64_t count;
};

// What a caller must supply and will get.
struct ProgramShape {
  int64_t channels, image_size;   // images [batch, channels, image_size, image_size]
  int64_t rows, width;            // result [batch, rows, width]
  int64_t waves;
};

// Checks every word, so that a program that passes cannot read or write outside the arena, the weights, the images and
// the result, whatever its origin; linear in the words. Throws std::invalid_argument naming the step, the field, and
// expected and found.
ProgramShape validate_program(Words program, int64_t weight_count);

// Checks that steps which may run at the same time leave each other's memory alone, and that no step writes what it
// still has to read, so that the result does not depend on the number of threads. For a validated program, once.
void check_waves(Words program);

// How the caller lends threads: parallel_for(n, body, state) calls body(state, begin, end) on disjoint ranges that
// cover [0, n), on at most `count` threads, and returns when all are done.
struct Threads {
  using Body = void (*)(void* state, int64_t begin, int64_t end);
  int64_t count;
  void (*parallel_for)(int64_t n, Body body, void* state);
};

struct ProgramRun {
  Words program;         // validated against these weights
  const float* weights;
  const float* images;   // [batch, channels, image_size, image_size]
  float* result;         // [batch, rows, width]
  int64_t batch;
  // If not null: the microseconds of each wave are added here; as the calling thread sees them, or the mean over the
  // threads where these run apart.
  double* waves = nullptr;
};

// Allocates nothing after the first call on a thread with programs of this size. The result does not depend on the
// number of threads.
void run_program(const ProgramRun& run, const Threads& threads);

}  // namespace vitsparse::cpu
