#include "kernels/cpu/linear.h"

#include "kernels/cpu/vec_scalar.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/linear_impl.h"
#include "kernels/cpu/levels.h"

namespace vitsparse::cpu {

namespace scalar {
int64_t linear_tasks(const Linear& op) { return linear_tasks_impl(op); }
void linear(const Linear& op, int64_t begin, int64_t end) { linear_impl(op, begin, end); }
}  // namespace scalar

int64_t linear_tasks(const Linear& op) { VITSPARSE_DISPATCH(linear_tasks(op)); }
void linear(const Linear& op, int64_t begin, int64_t end) { VITSPARSE_DISPATCH(linear(op, begin, end)); }

void pack_linear(const float* weight, int64_t outputs, int64_t inputs, float* packed) {
  for (int64_t panel = 0; panel < panels(outputs); ++panel)
    for (int64_t k = 0; k < inputs; ++k)
      for (int64_t lane = 0; lane < panel_columns; ++lane) {
        const int64_t output = panel * panel_columns + lane;
        *packed++ = output < outputs ? weight[output * inputs + k] : 0.f;
      }
}

}  // namespace vitsparse::cpu
