// The emulated device's own state.
#pragma once
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "races.h"

namespace emulator {

struct Warp;

struct Copy {
  void* to;
  const void *from, *code;
  int bytes, group;
  Site site;
};

struct Product {  // of a warpgroup, see warpgroup.cpp
  const void *a, *b, *code;
  size_t number;
};

struct Lane : Thread {
  Fiber fiber;
  Warp* warp;
  uint32_t bit;
  Operation operation;  // where it waits
  const char* name;
  Site site;
  std::vector<Copy> copies;  // to shared memory, in flight
  int groups;                // of copies, closed so far
  std::vector<Product> products;  // begun and not ended
  std::vector<float> open_sums;   // what they are added to
  size_t product_count;
  uint32_t fences;           // between what it writes itself and what those instructions read
  uint32_t acquired;         // epoch of the block in which it last learnt what other blocks have done
};

struct Block;

struct Warp {
  Lane lanes[32];
  void* operands[32];
  Block* block;
  int number;
  // Lanes that can go on, that wait for the others of the warp, at a barrier, for other blocks, that have ended.
  uint32_t ready, arrived, at_barrier, polling, ended;
  uint32_t epoch;  // counts __syncwarp()
};

// Shared memory of a block, in the middle of a larger piece that only mistakes touch.
struct Memory {
  static constexpr size_t most = 256 * 1024, margin = 64 * 1024, alignment = 128;  // of its begin, and no more
  std::vector<unsigned char> room;
  unsigned char* begin = nullptr;
  int size = 0;

  void fill(int bytes);  // with NaN
  bool within_margins(const void* address) const;
};

struct Block {
  Memory memory;
  Warp* warp;
  int warps, living, at_barrier;
  uint32_t number, epoch, first_epoch;  // an epoch ends with a barrier
  std::vector<Touched> touched;         // of shared memory
  std::vector<std::vector<Product>> products;  // of each warpgroup: all that any of its threads began
  Knowledge known, learnt;              // of other blocks: all threads, and those that acquired since the last barrier
};

struct Machine {
  const Launch* launch;
  std::vector<Block> blocks;  // that run at the same time
  std::vector<Warp> warps;    // of all of them
  Fiber launcher;
  uint64_t random;
  uint32_t restlessness;  // sixteenths: how often a warp gives way though it could go on
  int living, vain_rounds;
  uint32_t first_epoch;
  bool failed;
  volatile bool late;  // the launch took too long
};
extern Machine machine;

[[noreturn]] void fault_of_late();

// Called where a thread may stop.
inline void stop_if_late() {
  if (__builtin_expect(machine.late, false)) fault_of_late();
}

// While it lives, a signal that a thread of the device raises is a fault of the launch and not the end of the process.
class Guarded {
 public:
  explicit Guarded(int seconds);
  ~Guarded();
  Guarded(const Guarded&) = delete;
};

}  // namespace emulator
