// The emulated device's own state.
#pragma once
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"

namespace emulator {

struct Warp;

struct Copy {
  void* to;
  const void* from;
  int bytes, group;
  Site site;
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
};

struct Block;

struct Warp {
  Lane lanes[32];
  void* operands[32];
  Block* block;
  int number;
  // Lanes that can go on, that wait for the others of the warp, at a barrier, for other blocks, that have ended.
  uint32_t ready, arrived, at_barrier, polling, ended;
};

// Shared memory of a block, up against a page that cannot be touched.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory(Memory&& other) noexcept;
  ~Memory();
  void fill(int bytes);  // with NaN
  bool intact() const;   // what lies between its end and the page
  unsigned char* begin = nullptr;
  int size = 0;

 private:
  unsigned char* pages = nullptr;
};

struct Block {
  Memory memory;
  Warp* warp;
  int warps, living, at_barrier;
};

struct Machine {
  const Launch* launch;
  std::vector<Block> blocks;  // that run at the same time
  std::vector<Warp> warps;    // of all of them
  Fiber launcher;
  uint64_t random;
  uint32_t restlessness;  // sixteenths: how often a warp gives way though it could go on
  int living, vain_rounds;
  bool failed;
};
extern Machine machine;

// While it lives, a signal that a thread of the device raises is a fault of the launch and not the end of the process.
class Guarded {
 public:
  Guarded();
  ~Guarded();
  Guarded(const Guarded&) = delete;
};

}  // namespace emulator
