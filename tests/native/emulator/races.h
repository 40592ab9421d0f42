// Who touched which number last, and whether something orders the next access after it. See races.cpp.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace emulator {

struct Lane;
struct Block;

// The last access to two bytes. `thread`: of the block, or several_of(warp), or `several`.
struct Access {
  uint32_t time = 0;       // epoch of its block; 0: never
  uint32_t warp_time = 0;  // epoch of its warp
  uint32_t block = 0;
  uint32_t code = 0;  // where, as offset in this library
  int thread = 0;
  uint32_t fences = 0;  // of the thread, until then
};

enum class Touch { read, write, async_read };  // async_read: by instructions of a warpgroup

struct Touched {
  Access write, read;
  std::unique_ptr<std::vector<Access>> reads_of_others;  // of one for each block besides that of `read`
};

// Epochs of blocks are numbers that no other block ever has, so that nothing needs to be reset.
uint32_t next_epoch();

// What a block knows of the others: [number] the epoch before which all of that block's accesses are done.
using Knowledge = std::vector<uint32_t>;

void touched_shared(const void* address, int bytes, Touch touch, const void* code);
void forget_global();  // at the begin of a launch
void release(const uint32_t* counter);
void acquire(const uint32_t* counter);

}  // namespace emulator
