#include "kernels/cpu/workspace.h"

#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace vitsparse::cpu {
namespace {

struct Buffer {
  void* data = nullptr;
  int64_t bytes = 0;
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
};

// With AddressSanitizer, what an earlier and larger request left behind the `bytes` now asked for is out of bounds.
void fence([[maybe_unused]] const Buffer& buffer, [[maybe_unused]] int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(buffer.data, bytes);
  ASAN_POISON_MEMORY_REGION(static_cast<char*>(buffer.data) + bytes, buffer.bytes - bytes);
#endif
}

}  // namespace

void* workspace_bytes(Purpose purpose, int64_t bytes) {
  thread_local Buffer buffers[static_cast<int>(Purpose::count)];
  Buffer& buffer = buffers[static_cast<int>(purpose)];
  if (bytes > buffer.bytes) {
    const int64_t whole_lines = (bytes + 63) / 64 * 64;
    void* grown = std::aligned_alloc(64, static_cast<size_t>(whole_lines));
    if (grown == nullptr) throw std::bad_alloc();
    std::free(buffer.data);
    buffer.data = grown;
    buffer.bytes = whole_lines;
  }
  fence(buffer, bytes);
  return buffer.data;
}

}  // namespace vitsparse::cpu
