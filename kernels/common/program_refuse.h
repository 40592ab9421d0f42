// How a program is refused: by step and field, with what was expected and what was found.
#pragma once
#include <stdexcept>
#include <string>

#include "kernels/common/program_format.h"

namespace vitsparse::format {

inline const char* name_of(Op op) {
  static const char* names[] = {"PATCHES",       "LINEAR",    "SUM_NORM", "ATTENTION",
                                "APPLY_PATTERN", "MEAN_ROWS", "FILL",     "QKV_ATTENTION",
                                "MLP",           "NORM_LINEAR"};
  const int64_t code = static_cast<int64_t>(op);
  return code >= 1 && code <= 10 ? names[code - 1] : "unknown";
}

// `step` -1: the fault lies outside of the steps. Throws std::invalid_argument.
[[noreturn]] inline void refuse(int64_t step, Op op, const char* field, const std::string& expected,
                                int64_t found) {
  const std::string where = step < 0 ? "" : "step " + std::to_string(step) + " (" + name_of(op) + "), ";
  throw std::invalid_argument("program: " + where + field + ": expected " + expected + ", found " +
                              std::to_string(found));
}

}  // namespace vitsparse::format
