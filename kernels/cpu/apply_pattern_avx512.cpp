#if defined(__x86_64__)
#include "kernels/cpu/vec_avx512.h"
#include "kernels/cpu/vec_math.h"

#include "kernels/cpu/apply_pattern_impl.h"
#include "kernels/cpu/levels.h"

namespace vitsparse::cpu::avx512 {

void apply_pattern(const ApplyPattern& op, int64_t begin, int64_t end) { apply_pattern_impl(op, begin, end); }

}  // namespace vitsparse::cpu::avx512
#endif
