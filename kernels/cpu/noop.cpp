#include "kernels/cpu/noop.h"

#include <algorithm>

namespace vitsparse::cpu {

template <typename T>
void noop(const NoopParams<T>& params, int64_t begin, int64_t end) {
  std::copy(params.in + begin, params.in + end, params.out + begin);
}

template void noop<float>(const NoopParams<float>&, int64_t, int64_t);
template void noop<double>(const NoopParams<double>&, int64_t, int64_t);

}  // namespace vitsparse::cpu
