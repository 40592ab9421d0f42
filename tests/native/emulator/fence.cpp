// Memory for tensors that ends where a page begins that cannot be touched: a kernel that reads or writes behind a tensor is
// caught, and so is one that uses what was freed. Ends are multiples of 16 bytes.
#undef TORCH_TARGET_VERSION  // an allocator is no part of the stable ABI
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <new>

#include "emulator.h"

namespace emulator {
namespace {

constexpr size_t page = 4096;

struct Piece {
  void* pages;
  size_t bytes;
};

void give_back(void* context) {
  auto* const piece = static_cast<Piece*>(context);
  munmap(piece->pages, piece->bytes);
  delete piece;
}

class Fenced : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const size_t wanted = (bytes + 15) / 16 * 16, room = (wanted + page - 1) / page * page;
    void* const memory = mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    auto* const end = static_cast<unsigned char*>(memory) + room;
    mprotect(end, page, PROT_NONE);
    return {end - wanted, new Piece{memory, room + page}, give_back, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

// From fence(true) on the process allocates tensors so; fence(false): as before.
void fence(bool on) {
  static Fenced fenced;
  static c10::Allocator* const before = c10::GetCPUAllocator();
  c10::SetCPUAllocator(on ? &fenced : before);
}

}  // namespace emulator
