// Binding of vitsparse::cpu_isa: which instruction set the CPU ops use. See vitsparse/ops/cpu_isa.py.
#include "kernels/cpu/isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

namespace vitsparse::binding {
namespace {

std::string cpu_isa(std::string wanted) {
  const std::string before = cpu::isa_name(cpu::current_isa());
  if (wanted.empty()) return before;
  for (const auto isa : {cpu::Isa::scalar, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (wanted != cpu::isa_name(isa)) continue;
    STD_TORCH_CHECK(cpu::set_isa(isa), "instruction set '", wanted, "': this machine has at most '",
                    cpu::isa_name(cpu::best_isa()), "'");
    return before;
  }
  STD_TORCH_CHECK(false, "instruction set: expected scalar, avx2 or avx512, found '", wanted, "'");
}

}  // namespace
}  // namespace vitsparse::binding

STABLE_TORCH_LIBRARY_IMPL(vitsparse, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&vitsparse::binding::cpu_isa));
}
