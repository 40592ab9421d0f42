// Binding of vitsparse::run_program for CUDA tensors; the contract is vitsparse/ops/run_program.py.
#include <optional>
#include <string>

#include "csrc/cuda/tensors.h"
#include "kernels/common/program_refuse.h"
#include "kernels/cuda/program.h"
#include "kernels/cuda/program_target.h"

namespace vitsparse::binding {
namespace {

using torch::headeronly::ScalarType;

cuda::How how_of(const std::string& name) {
  if (name == "steps") return cuda::How::steps;
  if (name == "waves") return cuda::How::waves;
  STD_TORCH_CHECK(name == "persistent", "how: expected steps, waves or persistent, found ", name);
  return cuda::How::persistent;
}

bool is_program(const Tensor& x) { return x.scalar_type() == ScalarType::Long && x.dim() == 1 && x.is_contiguous(); }

// Kernels count rows and tasks, of all images together, in 32 bits.
constexpr int64_t most_numbers = int64_t{1} << 30;
void check_extents(format::Words words, int64_t batch) {
  STD_TORCH_CHECK(batch < most_numbers && words.count < (1 << 29), "images: too many images, or steps");
  for (int64_t i = 0; i < format::header(words).slots; ++i) {
    const format::Slot s = format::slot(words, i);
    STD_TORCH_CHECK(batch * s.rows * s.width < most_numbers, "images: ", batch, " images are too many at once for slot ", i);
  }
}

// The copy of the program in the memory of the images' device.
Tensor on_device_of(const Tensor& images, const Tensor& program, const std::optional<Tensor>& copy) {
  if (copy.has_value()) {
    STD_TORCH_CHECK(is_program(*copy) && on_device(*copy) && copy->numel() == program.numel() &&
                        copy->get_device_index() == images.get_device_index(),
                    "device_program: expected the copy of program on the GPU of the images");
    return *copy;
  }
  Tensor made = torch::stable::new_empty(images, {program.numel()}, ScalarType::Long);
  return torch::stable::copy_(made, program);
}

void check_status(const cuda::ProgramStatus& status, format::Words words) {
  if (status.error == cudaErrorInvalidValue && status.step >= 0) {
    int64_t number = 0;
    format::for_each_step(words, [&](const format::Step& step) {
      STD_TORCH_CHECK(number++ != status.step, "program: step ", status.step, " (", format::name_of(step.op),
                      ") does not fit into a block of this device; lower it to smaller steps");
    });
  }
  check(status.error, "run_program");
}

Tensor run_program(const Tensor& input, const Tensor& program, const Tensor& blob, const std::optional<Tensor>& copy,
                   std::string how) {
  const Guard guard(input.get_device_index());
  const cuda::How way = how_of(how);
  STD_TORCH_CHECK(program.is_cpu() && is_program(program), "program: expected a vector of int64 in CPU memory");
  const Tensor images = torch::stable::contiguous(with_dense_rows(input, input, "images", 4));
  const Tensor weights = torch::stable::contiguous(with_dense_rows(blob, input, "weights", 1));
  const format::Words words{static_cast<const int64_t*>(program.const_data_ptr()), program.numel()};
  const format::ProgramShape shape = format::validate_program(words, cuda::program_target, weights.numel());
  STD_TORCH_CHECK(images.size(1) == shape.channels && images.size(2) == shape.image_size &&
                      images.size(3) == shape.image_size,
                  "images: expected [batch, ", shape.channels, ", ", shape.image_size, ", ", shape.image_size, "]");
  const int64_t batch = images.size(0);
  check_extents(words, batch);
  const Tensor result = torch::stable::new_empty(images, {batch, shape.rows, shape.width});
  if (batch == 0) return result;
  const Tensor device_words = on_device_of(images, program, copy);
  const Tensor arena = torch::stable::new_empty(images, {format::header(words).arena_numbers * batch});
  const Tensor barrier = torch::stable::new_empty(images, {1}, ScalarType::Int);
  cuda::ProgramRun run{words, static_cast<const int64_t*>(device_words.const_data_ptr()), images.const_data_ptr(),
                             weights.const_data_ptr(), arena.mutable_data_ptr(), result.mutable_data_ptr(),
                             static_cast<uint32_t*>(barrier.mutable_data_ptr()), nullptr, static_cast<int>(batch)};
  const cuda::Context context = context_of(images);
  const int64_t between = cuda::program_scratch(run, context);
  STD_TORCH_CHECK(between < most_numbers, "images: ", batch, " images are too many at once for the steps between slots");
  const Tensor scratch = torch::stable::new_empty(images, {between});
  run.scratch = scratch.mutable_data_ptr();
  check_status(cuda::run_program(run, way, context), words);
  return result;
}

}  // namespace
}  // namespace vitsparse::binding

VITSPARSE_REGISTER_CUDA(m) { m.impl("run_program", TORCH_BOX(&vitsparse::binding::run_program)); }
