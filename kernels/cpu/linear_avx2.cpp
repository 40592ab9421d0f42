#if defined(__x86_64__)
#include "kernels/cpu/vec_avx2.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/linear_impl.h"
#include "kernels/cpu/levels.h"

namespace vitsparse::cpu::avx2 {

int64_t linear_tasks(const Linear& op) { return linear_tasks_impl(op); }
void linear(const Linear& op, int64_t begin, int64_t end) { linear_impl(op, begin, end); }

}  // namespace vitsparse::cpu::avx2
#endif
