#include "selftest.h"

#include "csrc/cuda/tensors.h"

namespace {

using namespace vitsparse;
using torch::stable::Tensor;

void product(const Tensor& a, const Tensor& b, Tensor out, bool by_rows, bool aligned) {
  const cuda::Context context = binding::context_of(a);
  const auto view = [](const Tensor& x) { return cuda::View{x.mutable_data_ptr(), 0, x.stride(0)}; };
  const cuda::ProductParams params{view(a), view(b), view(out), static_cast<int>(a.size(0)), static_cast<int>(out.size(1)),
                                   static_cast<int>(a.size(1)), aligned, context.half_accumulate};
  binding::check(cuda::product(params, by_rows, context), "product");
}

void mistake(const Tensor& in, Tensor out, Tensor counter, std::string name, int64_t blocks, int64_t shared_bytes) {
  const cuda::MistakeParams params{static_cast<const float*>(in.const_data_ptr()),
                                   static_cast<float*>(out.mutable_data_ptr()),
                                   static_cast<uint32_t*>(counter.mutable_data_ptr()), 0};
  binding::check(cuda::mistake(name, params, static_cast<int>(blocks), static_cast<int>(shared_bytes),
                               binding::context_of(in)), "mistake");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vitsparse_emulated, m) {
  m.def("product(Tensor a, Tensor b, Tensor(a!) out, bool by_rows, bool aligned) -> ()");
  m.def("mistake(Tensor x, Tensor(a!) out, Tensor(b!) counter, str name, int blocks, int shared_bytes) -> ()");
}
VITSPARSE_REGISTER_CUDA(m) {
  m.impl("product", TORCH_BOX(&product));
  m.impl("mistake", TORCH_BOX(&mistake));
}
