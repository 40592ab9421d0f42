#if defined(__x86_64__)
#include "kernels/cpu/vec_avx2.h"
#include "kernels/cpu/vec_math.h"

#include "kernels/cpu/attention_impl.h"
#include "kernels/cpu/levels.h"

namespace vitsparse::cpu::avx2 {

void attention(const Attention& op, int64_t begin, int64_t end) { attention_impl(op, begin, end); }

}  // namespace vitsparse::cpu::avx2
#endif
