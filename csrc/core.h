// Parts of the Python module, one function for each csrc/core_*.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace vitsparse {

void bind_facts(pybind11::module_& module);
void bind_plan(pybind11::module_& module);

}  // namespace vitsparse
