// What was built, with what, and what this processor can do.
#include "build_facts.h"
#include "csrc/core.h"
#include "kernels/cpu/isa.h"

namespace vitsparse {
namespace {

pybind11::dict build_facts() {
  pybind11::dict result;
  result["compiler"] = facts::kCompiler;
  result["torch_headers"] = facts::kTorchHeaders;
  result["cuda_compiler"] = facts::kCudaCompiler;
  result["cuda_architectures"] = facts::kCudaArchitectures;
  result["cpu_ops"] = facts::kCpuOps[0] != '\0';
  result["cuda_ops"] = facts::kCudaOps[0] != '\0';
  result["why_no_cpu_ops"] = facts::kWhyNoCpuOps;
  result["why_no_cuda_ops"] = facts::kWhyNoCudaOps;
  result["gpu_sources"] = facts::kGpuSources;
  result["verified_sources"] = facts::kVerifiedSources;
  result["verified_gpu"] = facts::kVerifiedGpu;
  result["verified_date"] = facts::kVerifiedDate;
  result["verified_levels"] = facts::kVerifiedLevels;
  return result;
}

}  // namespace

void bind_facts(pybind11::module_& module) {
  module.def("build_facts", &build_facts, "What this build found and made; an empty string means: not there.");
  module.def("cpu_isa", [] { return cpu::isa_name(cpu::current_isa()); },
             "Instruction set the CPU kernels use here: 'scalar', 'avx2' or 'avx512'.");
}

}  // namespace vitsparse
