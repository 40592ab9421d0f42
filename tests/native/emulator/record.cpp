// Launches noted down instead of run: which kernels, how many blocks and how much shared memory the ops take for tensors
// of some shape on a device as configured.
#include <dlfcn.h>

#include <string>
#include <utility>

#include "csrc/cuda/device.h"

namespace emulator {

bool recording = false;

namespace {

std::string noted;

// Where a kernel lies in its library: `nm` knows its name, also where it is not exported.
int64_t offset_of(const void* kernel) {
  Dl_info info;
  if (dladdr(kernel, &info) == 0) return -1;
  return static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase);
}

// From record(true) on launches are noted; record(false) ends it. Returns what came since the last call, a line each:
// offset of the kernel in this library, blocks, threads, bytes of shared memory.
std::string record(bool on) {
  recording = on;
  return std::exchange(noted, "");
}

}  // namespace

void note(const void* kernel, const Launch& launch) {
  noted += std::to_string(offset_of(kernel));
  for (const int number : {launch.blocks, launch.threads, launch.shared_bytes}) noted += ' ' + std::to_string(number);
  noted += '\n';
}

}  // namespace emulator

STABLE_TORCH_LIBRARY_FRAGMENT(vitsparse_emulated, m) { m.def("record(bool on) -> str"); }
STABLE_TORCH_LIBRARY_IMPL(vitsparse_emulated, CompositeExplicitAutograd, m) {
  m.impl("record", TORCH_BOX(&emulator::record));
}
