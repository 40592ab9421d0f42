#include "kernels/cpu/attention.h"

#include "kernels/cpu/vec_scalar.h"
#include "kernels/cpu/vec_math.h"

#include "kernels/cpu/attention_impl.h"
#include "kernels/cpu/levels.h"

namespace vitsparse::cpu {

namespace scalar {
void attention(const Attention& op, int64_t begin, int64_t end) { attention_impl(op, begin, end); }
}  // namespace scalar

void attention(const Attention& op, int64_t begin, int64_t end) { VITSPARSE_DISPATCH(attention(op, begin, end)); }

}  // namespace vitsparse::cpu
