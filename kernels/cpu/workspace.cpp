#include "kernels/cpu/workspace.h"

#include <cstdlib>
#include <new>

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
  return buffer.data;
}

}  // namespace vitsparse::cpu
