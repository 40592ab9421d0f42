// Races: two threads touch a number, at least one writes, and nothing says who is first.
//
// Device code is compiled with -fsanitize=thread, but the functions that this calls at every access are those below. What
// orders two accesses: the same thread; a barrier of the block between them; a __syncwarp() between lanes of a warp;
// between blocks, an add_release() after a barrier behind the first, seen by a load_acquire() before a barrier in front of
// the second (or by the thread itself). Shared memory is watched always, other memory in pages that the launch writes.
#include "races.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "machine.h"

namespace emulator {
namespace {

constexpr int several = 2000;
constexpr int several_of(int warp) { return 1024 + warp; }
constexpr int warp_of(int thread) { return thread < 1024 ? thread / 32 : thread - 1024; }

constexpr uintptr_t page = 4096;
using Page = std::unique_ptr<Touched[]>;
std::unordered_map<uintptr_t, Page> pages;               // of global memory, written in this launch
struct { uintptr_t number; Touched* page; } recent[1024];  // null: not written
std::unordered_map<const uint32_t*, Knowledge> released;

uint32_t epochs = 0;

Lane& self() { return *static_cast<Lane*>(current); }

const Dl_info& library() {
  static const Dl_info info = [] {
    Dl_info found{};
    dladdr(reinterpret_cast<const void*>(&next_epoch), &found);
    return found;
  }();
  return info;
}

uint32_t offset_of(const void* code) {
  return static_cast<uint32_t>(static_cast<const char*>(code) - static_cast<const char*>(library().dli_fbase));
}

// "file:line", and the lines that it was inlined into, asked of addr2line; the address alone where that is missing.
std::string line_of(uint32_t code) {
  char command[600], line[400];
  std::snprintf(command, sizeof(command), "addr2line -i -e '%s' 0x%x 2>/dev/null", library().dli_fname, code - 1);
  std::string text;
  FILE* const answer = popen(command, "r");
  while (answer && std::fgets(line, sizeof(line), answer)) {
    const std::string found = line;
    const size_t begin = found.rfind('/') + 1, end = found.find_first_of(" \n", begin);
    text += (text.empty() ? "" : ", inlined at ") + found.substr(begin, end - begin);
  }
  if (answer) pclose(answer);
  return text.empty() ? "code " + std::to_string(code) : text;
}

std::string described(const Access& access, const char* what) {
  const bool one = access.thread < 1024;
  std::string text = access.thread == several ? "threads" : one ? "thread " : "lanes of warp ";
  if (access.thread != several) text += std::to_string(one ? access.thread : warp_of(access.thread));
  return "block " + std::to_string(access.block) + ", " + text + " " + what + " at " + line_of(access.code);
}

[[noreturn]] void report(const char* where, size_t byte, const std::string& first, const std::string& second) {
  fault("a race in %s memory, byte %zu: %s, and then, with nothing to order them, %s", where, byte, first.c_str(),
        second.c_str());
}

// Whether another block was done with its epoch `time` as far as this thread can know.
bool known(const Lane& me, uint32_t block, uint32_t time) {
  const Block& own = *me.warp->block;
  const auto done = [&](const Knowledge& of) { return block < of.size() && of[block] > time; };
  return done(own.known) || (me.acquired == own.epoch && done(own.learnt));
}

bool ordered(const Access& before, const Lane& me, uint32_t since) {
  if (before.time < since) return true;
  const Warp& warp = *me.warp;
  if (before.block != warp.block->number) return known(me, before.block, before.time);
  if (before.time < warp.block->epoch || before.thread == static_cast<int>(me.index.x)) return true;
  return warp_of(before.thread) == warp.number && before.warp_time < warp.epoch;
}

// In a grid whose blocks know nothing of each other, one read of another block is enough to make a write a race.
void keep_read(Touched& number) {
  auto& others = number.reads_of_others;
  if (!others) others = std::make_unique<std::vector<Access>>();
  const auto same = std::find_if(others->begin(), others->end(),
                                 [&](const Access& read) { return read.block == number.read.block; });
  if (same != others->end()) *same = number.read;
  else if (others->empty() || machine.launch->cooperative) others->push_back(number.read);
}

void note_read(Touched& number, const Access& now, const Lane& me, uint32_t since) {
  int thread = now.thread;
  if (!ordered(number.read, me, since)) {
    if (number.read.block != now.block) keep_read(number);
    else thread = warp_of(number.read.thread) == me.warp->number ? several_of(me.warp->number) : several;
  }
  number.read = now;
  number.read.thread = thread;
}

const Lane& lane_of(const Block& block, const Access& access) {
  return block.warp[access.thread / 32].lanes[access.thread % 32];
}

// One number: what was noted of it, and what is done to it now.
void check(Touched& number, Touch touch, const void* code, uint32_t since, const char* where, size_t byte) {
  const Lane& me = self();
  const Block& block = *me.warp->block;
  const Access now{block.epoch, me.warp->epoch, block.number, offset_of(code), static_cast<int>(me.index.x), me.fences};
  const bool write = touch == Touch::write;
  const char* const what = write ? "writes" : "reads";
  if (!ordered(number.write, me, since)) report(where, byte, described(number.write, "writes"), described(now, what));
  const bool async = touch == Touch::async_read && number.write.time >= since;
  if (async && lane_of(block, number.write).fences == number.write.fences)
    fault("shared memory, byte %zu: %s without fence_async_proxy() before %s", byte,
          described(number.write, "writes").c_str(), described(now, "reads").c_str());
  if (!write) return note_read(number, now, me, since);
  const auto follow = [&](const Access& read) {
    if (!ordered(read, me, since)) report(where, byte, described(read, "reads"), described(now, what));
  };
  follow(number.read);
  if (number.reads_of_others) std::for_each(number.reads_of_others->begin(), number.reads_of_others->end(), follow);
  number.reads_of_others.reset();
  number.write = now;
}

Touched* page_of(uintptr_t number, bool write) {
  auto& slot = recent[number % 1024];
  if (slot.number == number && (slot.page || !write)) return slot.page;
  const auto found = pages.find(number);
  if (found != pages.end()) slot = {number, found->second.get()};
  else if (write) slot = {number, (pages[number] = std::make_unique<Touched[]>(page / 2)).get()};
  else slot = {number, nullptr};
  return slot.page;
}

void touched_global(uintptr_t address, int bytes, bool write, const void* code) {
  if (bytes == 1) return;
  for (uintptr_t a = address; a < address + bytes; a += 2)
    if (Touched* const of = page_of(a / page, write))
      check(of[a % page / 2], write ? Touch::write : Touch::read, code, machine.first_epoch, "global", a - address);
}

constexpr uintptr_t own_stack = 256 * 1024;

inline void touched(const void* address, int bytes, bool write, const void* code) {
  if (current == nullptr) return;
  stop_if_late();
  const auto a = reinterpret_cast<uintptr_t>(address), here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  if (a - here < own_stack) return;
  if (self().warp->block->memory.within_margins(address))
    touched_shared(address, bytes, write ? Touch::write : Touch::read, code);
  else touched_global(a, bytes, write, code);
}

}  // namespace

uint32_t next_epoch() { return ++epochs; }

void touched_shared(const void* address, int bytes, Touch touch, const void* code) {
  Block& block = *self().warp->block;
  const auto offset = static_cast<const unsigned char*>(address) - block.memory.begin;
  if (offset < 0 || offset + bytes > block.memory.size)
    fault("block %u, thread %u %s byte %td of %d bytes of shared memory at %s", current->block.x, current->index.x,
          touch == Touch::write ? "writes" : "reads", offset, block.memory.size, line_of(offset_of(code)).c_str());
  if (bytes == 1) return;  // its neighbour may be another thread's
  for (auto byte = offset; byte < offset + bytes; byte += 2)
    check(block.touched[byte / 2], touch, code, block.first_epoch, "shared", byte);
}

void forget_global() {
  pages.clear();
  released.clear();
  std::fill(std::begin(recent), std::end(recent), std::remove_reference_t<decltype(recent[0])>{});
}

namespace {
void learn(Knowledge& knowledge, const Knowledge& other) {
  knowledge.resize(std::max(knowledge.size(), other.size()));
  for (size_t b = 0; b < other.size(); ++b) knowledge[b] = std::max(knowledge[b], other[b]);
}
}  // namespace

void release(const uint32_t* counter) {
  const Lane& me = self();
  const Block& block = *me.warp->block;
  Knowledge& of = released[counter];
  learn(of, block.known);
  if (me.acquired == block.epoch) learn(of, block.learnt);
  of[block.number] = std::max(of[block.number], block.epoch);
}

void acquire(const uint32_t* counter) {
  Lane& me = self();
  me.acquired = me.warp->block->epoch;
  learn(me.warp->block->learnt, released[counter]);
}

}  // namespace emulator

// ---- what -fsanitize=thread calls ----

#define ACCESS(name, bytes, write) \
  void __tsan_##name(void* address) { emulator::touched(address, bytes, write, __builtin_return_address(0)); }
#define ACCESSES(bytes) \
  ACCESS(read##bytes, bytes, false) ACCESS(write##bytes, bytes, true)
#define UNALIGNED(bytes) \
  ACCESS(unaligned_read##bytes, bytes, false) ACCESS(unaligned_write##bytes, bytes, true)
extern "C" {
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16)
UNALIGNED(2) UNALIGNED(4) UNALIGNED(8) UNALIGNED(16)
void __tsan_read_range(void* address, unsigned long bytes) {
  emulator::touched(address, static_cast<int>(bytes), false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, unsigned long bytes) {
  emulator::touched(address, static_cast<int>(bytes), true, __builtin_return_address(0));
}
void __tsan_init() {}
}
