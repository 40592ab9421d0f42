#include "kernels/cpu/workspace.h"

#include <cstdlib>
#include <new>

namespace vitsparse::cpu {
namespace {

struct Buffer {
  float* data = nullptr;
  int64_t floats = 0;
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
};

}  // namespace

float* workspace(Purpose purpose, int64_t floats) {
  thread_local Buffer buffers[2];
  Buffer& buffer = buffers[static_cast<int>(purpose)];
  if (floats > buffer.floats) {
    void* grown = std::aligned_alloc(64, static_cast<size_t>(aligned(floats)) * sizeof(float));
    if (grown == nullptr) throw std::bad_alloc();
    std::free(buffer.data);
    buffer.data = static_cast<float*>(grown);
    buffer.floats = aligned(floats);
  }
  return buffer.data;
}

}  // namespace vitsparse::cpu
