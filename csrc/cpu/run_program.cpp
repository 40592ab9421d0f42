// Binding of vitsparse::run_program for CPU tensors; the contract is vitsparse/ops/run_program.py.
#include <torch/csrc/stable/library.h>

#include "csrc/cpu/tensors.h"
#include "kernels/cpu/program.h"

namespace vitsparse::binding {
namespace {

void parallel_for(int64_t n, cpu::Threads::Body body, void* state) {
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, n, (n + threads - 1) / threads,
                              [=](int64_t begin, int64_t end) { body(state, begin, end); });
}

Tensor run_program(const Tensor& images, const Tensor& program, const Tensor& weights) {
  const Tensor x = contiguous_floats(images, "images"), w = contiguous_floats(weights, "weights");
  STD_TORCH_CHECK(program.is_cpu() && program.scalar_type() == torch::headeronly::ScalarType::Long &&
                      program.dim() == 1 && program.is_contiguous(),
                  "program: expected a vector of int64 in CPU memory");
  const cpu::Words words{static_cast<const int64_t*>(program.const_data_ptr()), program.numel()};
  const cpu::ProgramShape shape = cpu::validate_program(words, w.numel());
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == shape.channels && x.size(2) == shape.image_size &&
                      x.size(3) == shape.image_size,
                  "images: expected [batch, ", shape.channels, ", ", shape.image_size, ", ", shape.image_size, "]");
  const Tensor out = new_rows(x, x.size(0), shape.rows, shape.width);
  cpu::run_program({words, data_of(w), data_of(x), mutable_data_of(out), x.size(0)},
                   {static_cast<int64_t>(torch::stable::get_num_threads()), parallel_for});
  return out;
}

}  // namespace
}  // namespace vitsparse::binding

STABLE_TORCH_LIBRARY_IMPL(vitsparse, CPU, m) { m.impl("run_program", TORCH_BOX(&vitsparse::binding::run_program)); }
