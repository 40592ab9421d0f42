// A CUDA device in plain C++, so that the sources of kernels/cuda run, and are tested, without one.
//
// The headers of this folder come first on the include path: they stand for the CUDA headers, for ptx.cuh, wgmma.cuh,
// launch.cuh and device.h, and leave everything else as it is. Each CUDA thread is a fiber (fiber.h), all on the OS thread
// that launches. A fiber runs until it meets others: at an instruction of its warp, at a barrier of its block, at a load
// that waits for another block; whose turn it then is depends on a seed (machine.cpp).
//
// What real hardware leaves to chance is set to do harm: shared memory begins as NaN (memory.cpp), copies to it land when
// they are waited for and not before, and products of warpgroups likewise (warpgroup.cpp); tensors end at a page that cannot
// be touched (fence.cpp). Every access of device code is looked at (races.cpp). A fault ends the launch with an error that
// says which threads were where.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

struct Index {
  unsigned x, y, z;
};

// A line of a kernel; as a default argument, the line of the call.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Site& other) const { return file == other.file && line == other.line; }
};

struct Device {
  int level = 80;
  bool half_accumulate = false;
  int multiprocessors = 4;
  int shared_limit = 99 * 1024;
  uint64_t seed = 0;  // of the order of threads
  int seconds = 60;   // of this thread, that a launch may take
};

struct Launch {
  void (*body)(void*);
  void* argument;
  int blocks, threads, shared_bytes;
  bool cooperative;
};

// What a kernel may ask about itself.
struct Thread {
  Index index, block;
};
extern Thread* current;
extern Index block_size, grid_size;

// Runs all threads of a launch; false, with the reason in last_fault(), at the first fault.
bool run(const Launch& launch, const Device& device);
const char* last_fault();
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Instead of run(): see record.cpp.
extern bool recording;
void note(const void* kernel, const Launch& launch);

// What all 32 lanes of a warp do together, called once when the last has arrived. lanes[i]: the operand of lane i.
using Operation = void (*)(void* const (&lanes)[32]);
void together(Operation operation, const char* name, void* operand, Site site);
void barrier(Site site);
void meet(void* const (&lanes)[32]);       // __syncwarp: the one of them that orders what lanes write and read
void meet_here(void* const (&lanes)[32]);  // orders nothing

// ---- memory that all blocks share; a load lets others run first ----
void add_release(uint32_t* counter, uint32_t value);
uint32_t load_acquire(const uint32_t* counter, Site site);

void fence(bool on);  // see fence.cpp

// ---- shared memory ----
unsigned char* shared();
void require_shared(const void* address, int bytes, int alignment, const char* what, Site site);
void read_shared(const void* address, int bytes);  // notes it; plain reads and writes are noted by themselves
void copy_later(void* to, const void* from, int bytes, Site site);  // 16 bytes, those from `bytes` on zero
void commit_copies();
void wait_for_copies(int open);

}  // namespace emulator
