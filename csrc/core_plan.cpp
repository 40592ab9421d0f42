// What the compiler needs to write programs, without torch: packing for the CPU, and checking for both backends.
#include <pybind11/numpy.h>

#include <stdexcept>
#include <string>

#include "csrc/core.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/program.h"
#include "kernels/cuda/program_target.h"

namespace vitsparse {
namespace {

namespace py = pybind11;
template <class T>
using Array = py::array_t<T, py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_>;  // else a copy

int64_t packed_size(int64_t outputs, int64_t inputs) {
  if (outputs < 0 || inputs < 0 || outputs > (1 << 20) || inputs > (1 << 20))
    throw std::invalid_argument("packed_size: expected extents from 0 to 2^20");
  return cpu::packed_size(outputs, inputs);
}

Array<float> pack_linear(const Array<float>& weight) {
  if (weight.ndim() != 2) throw std::invalid_argument("weight: expected [outputs, inputs]");
  Array<float> packed(packed_size(weight.shape(0), weight.shape(1)));
  cpu::pack_linear(weight.data(), weight.shape(0), weight.shape(1), packed.mutable_data());
  return packed;
}

const format::Target& target_of(const std::string& name) {
  if (name == "cpu") return cpu::program_target;
  if (name == "cuda") return cuda::program_target;
  throw std::invalid_argument("target: expected cpu or cuda, found " + name);
}

py::dict validate_program(const Array<int64_t>& program, int64_t weight_count, const std::string& target) {
  if (program.ndim() != 1) throw std::invalid_argument("program: expected a vector");
  const format::Words words{program.data(), program.size()};
  const format::ProgramShape shape = format::validate_program(words, target_of(target), weight_count);
  format::check_waves(words);
  py::dict result;
  result["channels"] = shape.channels;
  result["image_size"] = shape.image_size;
  result["rows"] = shape.rows;
  result["width"] = shape.width;
  result["waves"] = shape.waves;
  return result;
}

}  // namespace

void bind_plan(py::module_& module) {
  module.def("packed_size", &packed_size, py::arg("outputs"), py::arg("inputs"),
             "Floats that a packed [outputs, inputs] matrix takes.");
  module.def("pack_linear", &pack_linear, py::arg("weight"),
             "A float32 matrix [outputs, inputs] in the layout of the CPU kernels, the same on each machine.");
  module.def("validate_program", &validate_program, py::arg("program"), py::arg("weights_size"),
             py::arg("target") = "cpu",
             "Checks a program for `target` (cpu, cuda) against the number of its weights, and that steps which may run at the same time leave "
             "each other's memory alone; returns the sizes of images and result, and the number of waves. Raises "
             "ValueError naming the step and the field.");
}

}  // namespace vitsparse
