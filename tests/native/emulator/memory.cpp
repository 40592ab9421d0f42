// Shared memory, and copies to it that land late.
#include <cstring>

#include "machine.h"

namespace emulator {
namespace {

// NaN as float16, bfloat16, float32 and float64, and no sensible whole number.
void poison(void* memory, size_t bytes) {
  constexpr uint16_t nan = 0x7fff;
  auto* const numbers = static_cast<unsigned char*>(memory);
  for (size_t i = 0; i + 1 < bytes; i += 2) std::memcpy(numbers + i, &nan, 2);
}

Lane& self() { return *static_cast<Lane*>(current); }

}  // namespace

void Memory::fill(int bytes) {
  constexpr size_t more = 1024;
  room.resize(margin + more + most + margin);
  const auto from = reinterpret_cast<uintptr_t>(room.data()) + margin;
  begin = reinterpret_cast<unsigned char*>(from / more * more + alignment);
  size = bytes;
  poison(begin, bytes);
}

bool Memory::within_margins(const void* address) const {
  return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(room.data()) < room.size();
}

unsigned char* shared() { return self().warp->block->memory.begin; }

void require_shared(const void* address, int bytes, int aligned_to, const char* what, Site site) {
  const Memory& memory = self().warp->block->memory;
  const auto offset = static_cast<const unsigned char*>(address) - memory.begin;
  const char* fault_of = reinterpret_cast<uintptr_t>(address) % aligned_to     ? "not aligned"
                         : offset < 0 || offset + bytes > memory.size ? "outside shared memory"
                                                                      : nullptr;
  if (fault_of)
    fault("block %u, thread %u: %s at %s:%d: byte %td of %d of shared memory is %s", current->block.x, current->index.x,
          what, site.file, site.line, offset, memory.size, fault_of);
}

__attribute__((noinline)) void read_shared(const void* address, int bytes) {
  touched_shared(address, bytes, Touch::read, __builtin_return_address(0));
}

__attribute__((noinline)) void copy_later(void* to, const void* from, int bytes, Site site) {
  if (bytes < 0 || bytes > 16 || reinterpret_cast<uintptr_t>(from) % 16)
    fault("block %u, thread %u: copy_16 at %s:%d: %d bytes from %p", current->block.x, current->index.x, site.file,
          site.line, bytes, from);
  const void* const code = __builtin_return_address(0);
  touched_shared(to, 16, Touch::write, code);
  poison(to, 16);
  self().copies.push_back({to, from, code, bytes, self().groups, site});
}

void commit_copies() { ++self().groups; }

void wait_for_copies(int open) {
  auto& copies = self().copies;
  size_t landed = 0;
  for (; landed < copies.size() && copies[landed].group < self().groups - open; ++landed) {
    const Copy& copy = copies[landed];
    touched_shared(copy.to, 16, Touch::write, copy.code);
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  copies.erase(copies.begin(), copies.begin() + landed);
}

}  // namespace emulator
