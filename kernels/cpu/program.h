// Runs a compiled plan, a program of a few dozen steps (kernels/common/program_format.h), over a batch of images.
#pragma once
#include "kernels/common/program_validate.h"
#include "kernels/cpu/layout.h"

namespace vitsparse::cpu {

using format::Words;
inline constexpr format::Target program_target{packed_size, false};

// How the caller lends threads: parallel_for(n, body, state) calls body(state, begin, end) on disjoint ranges that
// cover [0, n), on at most `count` threads, and returns when all are done.
struct Threads {
  using Body = void (*)(void* state, int64_t begin, int64_t end);
  int64_t count;
  void (*parallel_for)(int64_t n, Body body, void* state);
};

struct ProgramRun {
  Words program;         // validated for program_target and these weights
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
