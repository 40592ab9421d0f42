// Memory of a thread that kernels and programs reuse from call to call: grown when needed, never shrunk.
#pragma once
#include <cstdint>

namespace vitsparse::cpu {

enum class Purpose { kernel = 0, program = 1 };  // a program holds its memory while its kernels ask for theirs

// At least `floats` floats, 64-byte aligned, contents undefined; valid until this thread asks again for that purpose.
// Throws std::bad_alloc.
float* workspace(Purpose purpose, int64_t floats);

constexpr int64_t aligned(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace vitsparse::cpu
