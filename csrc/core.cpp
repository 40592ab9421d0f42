// vitsparse._core: what needs C++ but not torch.
#include "csrc/core.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "Native helpers of vitsparse that need no torch: build facts, CPU features, plan packing.";
  vitsparse::bind_facts(module);
  vitsparse::bind_plan(module);
}
