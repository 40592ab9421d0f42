// Runs a compiled plan (kernels/common/program_format.h) over a batch of images.
//   steps       a launch of the op's own kernel for each step: for batches that fill the device
//   waves       a launch for each wave: a block is one task of any of its steps
//   persistent  one launch stays for all waves, with a barrier of all blocks between them: for a single image. Waves with
//               steps that are rare, or that need many registers (QKV_ATTENTION, heads wider than 32), break it in two.
// Steps that fit into no task of waves and persistent (MLP, wide heads) are launched as in steps; and those of several ops
// (MLP, QKV_ATTENTION, NORM_LINEAR) that fit into no block as these ops, with scratch memory between them.
#pragma once
#include "kernels/common/program_format.h"
#include "kernels/cuda/level.h"

namespace vitsparse::cuda {

enum class How : int { steps, waves, persistent };

struct ProgramRun {
  format::Words program;        // in host memory, validated for program_target and these weights
  const int64_t* device_words;  // the same words in the device's memory
  const void *images, *weights;
  void *arena, *result;
  uint32_t* barrier;  // one number, of any value; for persistent
  void* scratch;      // program_scratch() numbers
  int batch;          // batch times the rows of any slot is less than 2^30
};

struct ProgramStatus {
  cudaError_t error;  // cudaErrorInvalidValue: `step` does not fit into a block
  int64_t step;       // -1: none in particular
};

// Numbers of scratch memory that a run needs; `run` but for its scratch.
int64_t program_scratch(const ProgramRun& run, const Context& context);
ProgramStatus run_program(const ProgramRun& run, How how, const Context& context);

}  // namespace vitsparse::cuda
