#include "kernels/cpu/apply_pattern.h"

#include "kernels/cpu/vec_scalar.h"
#include "kernels/cpu/vec_math.h"

#include "kernels/cpu/apply_pattern_impl.h"
#include "kernels/cpu/levels.h"

namespace vitsparse::cpu {

namespace scalar {
void apply_pattern(const ApplyPattern& op, int64_t begin, int64_t end) { apply_pattern_impl(op, begin, end); }
}  // namespace scalar

void apply_pattern(const ApplyPattern& op, int64_t begin, int64_t end) {
  VITSPARSE_DISPATCH(apply_pattern(op, begin, end));
}

}  // namespace vitsparse::cpu
