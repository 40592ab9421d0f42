// Binding of vitsparse::run_program and profile_program for CPU tensors; the contract is vitsparse/ops/run_program.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "csrc/cpu/tensors.h"
#include "kernels/cpu/program.h"

namespace vitsparse::binding {
namespace {

void parallel_for(int64_t n, cpu::Threads::Body body, void* state) {
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, n, (n + threads - 1) / threads,
                              [=](int64_t begin, int64_t end) { body(state, begin, end); });
}

cpu::Threads threads() { return {static_cast<int64_t>(torch::stable::get_num_threads()), parallel_for}; }

// A checked program with its tensors, ready to run.
struct Call {
  Tensor images, program, weights, result;
  format::ProgramShape shape;

  Call(const Tensor& x, const Tensor& words, const Tensor& w)
      : images(contiguous_floats(x, "images")), program(aligned(words, alignof(int64_t))), weights(contiguous_floats(w, "weights")) {
    STD_TORCH_CHECK(program.is_cpu() && program.scalar_type() == torch::headeronly::ScalarType::Long &&
                        program.dim() == 1 && program.is_contiguous(),
                    "program: expected a vector of int64 in CPU memory");
    shape = format::validate_program(this->words(), cpu::program_target, weights.numel());
    STD_TORCH_CHECK(images.dim() == 4 && images.size(1) == shape.channels && images.size(2) == shape.image_size &&
                        images.size(3) == shape.image_size,
                    "images: expected [batch, ", shape.channels, ", ", shape.image_size, ", ", shape.image_size, "]");
    result = new_rows(images, images.size(0), shape.rows, shape.width);
  }
  cpu::Words words() const { return {static_cast<const int64_t*>(program.const_data_ptr()), program.numel()}; }
  void run(double* waves = nullptr) const {
    cpu::run_program({words(), data_of(weights), data_of(images), mutable_data_of(result), images.size(0), waves},
                     threads());
  }
};

Tensor run_program(const Tensor& images, const Tensor& program, const Tensor& weights,
                   const std::optional<Tensor>& device_program, const std::string& how) {
  STD_TORCH_CHECK(!device_program.has_value() && how == "steps", "how: expected \"steps\" on CPU, and no device program");
  const Call call(images, program, weights);
  call.run();
  return call.result;
}

Tensor profile_program(const Tensor& images, const Tensor& program, const Tensor& weights, int64_t repeats) {
  const Call call(images, program, weights);
  STD_TORCH_CHECK(repeats >= 1, "repeats: expected at least 1, found ", repeats);
  const int64_t waves = call.shape.waves;
  std::vector<double> times(waves * repeats, 0.), one(repeats);
  for (int64_t i = 0; i < repeats; ++i) call.run(times.data() + i * waves);
  const Tensor medians = torch::stable::new_empty(call.images, {waves}, torch::headeronly::ScalarType::Double);
  for (int64_t wave = 0; wave < waves; ++wave) {
    for (int64_t i = 0; i < repeats; ++i) one[i] = times[i * waves + wave];
    std::nth_element(one.begin(), one.begin() + repeats / 2, one.end());
    static_cast<double*>(medians.mutable_data_ptr())[wave] = one[repeats / 2];
  }
  return medians;
}

}  // namespace
}  // namespace vitsparse::binding

STABLE_TORCH_LIBRARY_IMPL(vitsparse, CPU, m) {
  m.impl("run_program", TORCH_BOX(&vitsparse::binding::run_program));
  m.impl("profile_program", TORCH_BOX(&vitsparse::binding::profile_program));
}
