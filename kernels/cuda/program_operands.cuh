// From the words of a step to what its kernel takes, on the host and on the device alike.
#pragma once
#include "kernels/common/program_format.h"
#include "kernels/cuda/apply_pattern.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/mlp.h"
#include "kernels/cuda/moves.h"
#include "kernels/cuda/norm_linear.h"
#include "kernels/cuda/program_target.h"
#include "kernels/cuda/qkv_attention.h"

namespace vitsparse::cuda {

struct ProgramBase {
  const int64_t* words;  // of the program, where they are read
  const unsigned char *images, *weights;
  unsigned char *arena, *result;
  int batch, number_bytes;

  VITSPARSE_HD const void* weights_at(int64_t offset) const { return weights + offset * number_bytes; }
  VITSPARSE_HD const void* weights_or_null(int64_t offset) const { return offset == -1 ? nullptr : weights_at(offset); }
};

VITSPARSE_HD inline View view_of(const ProgramBase& base, const format::View& view) {
  if (!view.wanted()) return {};
  const format::Slot s = format::slot(base.words, view.slot);
  const int64_t inside = view.row0 * s.width + view.col0, image_stride = s.rows * s.width;
  const auto at = [&](const unsigned char* memory, int64_t offset) {  // of constants nothing is written: validated
    return const_cast<unsigned char*>(memory + (offset + inside) * base.number_bytes);
  };
  switch (s.space) {
    case format::Space::arena: return {at(base.arena, s.offset * base.batch), image_stride, s.width};
    case format::Space::result: return {at(base.result, 0), image_stride, s.width};
    default: return {at(base.weights, s.offset), 0, s.width};
  }
}

VITSPARSE_HD inline LinearParams linear_of(const ProgramBase& base, const int64_t* operands) {
  const auto s = format::read<format::Linear>(operands);
  return {view_of(base, s.src), view_of(base, s.dst), base.weights_at(s.packed_offset), padded_inputs(s.inputs),
          base.weights_or_null(s.bias_offset), s.bias_rows == 1 ? 0 : s.outputs, base.batch,
          static_cast<int>(s.src.rows), static_cast<int>(s.inputs), static_cast<int>(s.outputs), s.activation != 0,
          s.accumulate != 0};
}

// But for its sources, which are source_behind<NormLinear>: `max_gathered` of them at most.
VITSPARSE_HD inline NormLinearParams norm_linear_of(const ProgramBase& base, const int64_t* operands) {
  const auto s = format::read<format::NormLinear>(operands);
  const LinearParams product = {{}, view_of(base, s.dst), base.weights_at(s.packed_offset), padded_inputs(s.width),
                                base.weights_or_null(s.bias_offset), 0, base.batch, static_cast<int>(s.dst.rows),
                                static_cast<int>(s.width), static_cast<int>(s.outputs), s.activation != 0, false};
  return {product, static_cast<int>(s.adds), static_cast<int>(s.minuses), base.weights_or_null(s.offset_offset),
          s.offset_rows == 1 ? 0 : s.width, view_of(base, s.sum), format::float_of_bits(s.eps_bits), {}};
}

VITSPARSE_HD inline AttentionParams attention_of(const ProgramBase& base, const int64_t* operands) {
  const auto s = format::read<format::Attention>(operands);
  return {view_of(base, s.q), view_of(base, s.dst), view_of(base, s.k), view_of(base, s.v), nullptr, base.batch,
          static_cast<int>(s.heads), static_cast<int>(s.head_dim), static_cast<int>(s.q.rows),
          static_cast<int>(s.k.rows), format::float_of_bits(s.scale_bits)};
}

VITSPARSE_HD inline QkvAttentionParams qkv_attention_of(const ProgramBase& base, const int64_t* operands) {
  const auto s = format::read<format::QkvAttention>(operands);
  return {view_of(base, s.src), view_of(base, s.dst), base.weights_at(s.weight_offset), padded_inputs(s.inputs),
          base.weights_or_null(s.bias_offset), nullptr, base.batch, static_cast<int>(s.heads),
          static_cast<int>(s.head_dim), static_cast<int>(s.src.rows), static_cast<int>(s.inputs),
          format::float_of_bits(s.scale_bits)};
}

VITSPARSE_HD inline ApplyPatternParams apply_pattern_of(const ProgramBase& base, const int64_t* operands) {
  const auto s = format::read<format::ApplyPattern>(operands);
  return {base.weights_at(s.pattern_offset), view_of(base, s.v), view_of(base, s.dst), base.batch,
          static_cast<int>(s.heads), static_cast<int>(s.head_dim), static_cast<int>(s.dst.rows),
          static_cast<int>(s.v.rows)};
}

VITSPARSE_HD inline PatchesParams patches_of(const ProgramBase& base, const int64_t* operands) {
  const auto s = format::read<format::Patches>(operands);
  const format::Header h = format::header(base.words);
  return {base.images, view_of(base, s.dst), base.batch, static_cast<int>(h.channels), static_cast<int>(h.image_size),
          static_cast<int>(s.patch)};
}

VITSPARSE_HD inline MeanRowsParams mean_rows_of(const ProgramBase& base, const int64_t* operands) {
  const auto s = format::read<format::MeanRows>(operands);
  return {view_of(base, s.src), view_of(base, s.dst), base.batch, static_cast<int>(s.src.rows),
          static_cast<int>(s.width)};
}

VITSPARSE_HD inline FillParams fill_of(const ProgramBase& base, const int64_t* operands) {
  const auto s = format::read<format::Fill>(operands);
  return {base.weights_at(s.constant_offset), view_of(base, s.dst), base.batch, static_cast<int>(s.dst.rows),
          static_cast<int>(s.width)};
}

// A SUM_NORM step: its parts are read from the words, row by row (program_sum.cuh).
struct SumRows {
  const int64_t* operands;
  int rows, width, parts;  // rows of an image
  float eps;
};
VITSPARSE_HD inline SumRows sum_rows_of(const int64_t* operands) {
  const auto s = format::read<format::SumNorm>(operands);
  return {operands, static_cast<int>(format::rows_of_sum(operands)), static_cast<int>(s.width),
          static_cast<int>(s.parts), format::float_of_bits(s.eps_bits)};
}

}  // namespace vitsparse::cuda
