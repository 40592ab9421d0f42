#include "kernels/cpu/sum_norm.h"

#include "kernels/cpu/vec_scalar.h"
#include "kernels/cpu/vec_math.h"

#include "kernels/cpu/sum_norm_impl.h"
#include "kernels/cpu/levels.h"

namespace vitsparse::cpu {

namespace scalar {
void sum_norm(const SumNorm& op, int64_t begin, int64_t end) { sum_norm_impl(op, begin, end); }
}  // namespace scalar

void sum_norm(const SumNorm& op, int64_t begin, int64_t end) { VITSPARSE_DISPATCH(sum_norm(op, begin, end)); }

}  // namespace vitsparse::cpu
