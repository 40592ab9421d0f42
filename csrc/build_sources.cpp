// Which GPU sources libvitsparse_cuda.so was made of, for whoever loads it (vitsparse/backends/native.py): a library left
// over from another build is found out.
#include "build_facts.h"

extern "C" {
extern const char* const vitsparse_cuda_sources __attribute__((visibility("default")));
const char* const vitsparse_cuda_sources = vitsparse::facts::kGpuSources;
}
