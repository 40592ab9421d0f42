// Affine map of token rows: dst = activation(src W^T + bias) (+ dst).
#pragma once
#include "kernels/cpu/layout.h"

namespace vitsparse::cpu {

enum class Activation : int64_t { none = 0, gelu = 1 };

struct Linear {
  Rows src;             // [images, rows, inputs]
  MutableRows dst;      // [images, rows, outputs]
  int64_t images, rows, inputs, outputs;
  const float* packed;  // W by pack_linear
  const float* bias;    // null, or row r of each image gets bias + r * bias_stride
  int64_t bias_stride;
  Activation activation;
  bool accumulate;
};

// W [outputs, inputs], row-major, into panels of 16 outputs (layout.h); packed_size(outputs, inputs) floats.
void pack_linear(const float* weight, int64_t outputs, int64_t inputs, float* packed);

int64_t linear_tasks(const Linear& op);                        // independent tiles of the result
void linear(const Linear& op, int64_t begin, int64_t end);     // computes tasks [begin, end)
inline void linear(const Linear& op) { linear(op, 0, linear_tasks(op)); }

}  // namespace vitsparse::cpu
