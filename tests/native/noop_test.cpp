// sources: kernels/cpu/noop.cpp
// The no-op kernel on raw memory, at the borders of its range.
#include "kernels/cpu/noop.h"

#include <cstdio>
#include <vector>

int main() {
  for (int64_t count : {0, 1, 7, 64, 1000}) {
    std::vector<float> in(count), out(count, -1.0f);
    for (int64_t i = 0; i < count; ++i) in[i] = static_cast<float>(i);
    const vitsparse::NoopParams<float> params{in.data(), out.data(), count};
    vitsparse::cpu::noop(params, 0, count / 2);  // two ranges, as two threads would take them
    vitsparse::cpu::noop(params, count / 2, count);
    if (in != out) {
      std::printf("count %lld: the copy differs\n", static_cast<long long>(count));
      return 1;
    }
  }
  return 0;
}
