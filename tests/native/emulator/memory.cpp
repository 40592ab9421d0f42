// Shared memory, and copies to it that land late.
#include <sys/mman.h>

#include <cstring>
#include <new>

#include "machine.h"

namespace emulator {
namespace {

constexpr size_t page = 4096, most = 256 * 1024, alignment = 128;
constexpr unsigned char canary = 0xc5;

// NaN as float16, bfloat16, float32 and float64, and no sensible whole number.
void poison(void* memory, size_t bytes) {
  constexpr uint16_t nan = 0x7fff;
  auto* const numbers = static_cast<unsigned char*>(memory);
  for (size_t i = 0; i + 1 < bytes; i += 2) std::memcpy(numbers + i, &nan, 2);
}

Lane& self() { return *static_cast<Lane*>(current); }

size_t behind(int size) { return (alignment - size % alignment) % alignment; }

}  // namespace

Memory::Memory(Memory&& other) noexcept : begin(other.begin), size(other.size), pages(other.pages) {
  other.pages = nullptr;
}

Memory::~Memory() {
  if (pages) munmap(pages, page + most + page);
}

void Memory::fill(int bytes) {
  if (!pages) {
    void* const memory = mmap(nullptr, page + most + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    pages = static_cast<unsigned char*>(memory);
    size = -1;
  }
  const size_t gap = behind(bytes), room = (bytes + gap + page - 1) / page * page;
  if (bytes != size) {  // the pages before and behind: not to be touched
    mprotect(pages, page + most + page, PROT_NONE);
    mprotect(pages + page + most - room, room, PROT_READ | PROT_WRITE);
    size = bytes;
  }
  begin = pages + page + most - bytes - gap;
  std::memset(pages + page + most - room, canary, room);
  poison(begin, bytes);
}

bool Memory::intact() const {
  const size_t gap = behind(size), room = (size + gap + page - 1) / page * page;
  const unsigned char *const end = pages + page + most, *const first = end - room;
  for (const auto* p = first; p < begin; ++p)
    if (*p != canary) return false;
  for (const auto* p = begin + size; p < end; ++p)
    if (*p != canary) return false;
  return true;
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

void copy_later(void* to, const void* from, int bytes, Site site) {
  if (bytes < 0 || bytes > 16 || reinterpret_cast<uintptr_t>(from) % 16)
    fault("block %u, thread %u: copy_16 at %s:%d: %d bytes from %p", current->block.x, current->index.x, site.file,
          site.line, bytes, from);
  poison(to, 16);
  self().copies.push_back({to, from, bytes, self().groups, site});
}

void commit_copies() { ++self().groups; }

void wait_for_copies(int open) {
  auto& copies = self().copies;
  size_t landed = 0;
  for (; landed < copies.size() && copies[landed].group < self().groups - open; ++landed) {
    const Copy& copy = copies[landed];
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  copies.erase(copies.begin(), copies.begin() + landed);
}

}  // namespace emulator
