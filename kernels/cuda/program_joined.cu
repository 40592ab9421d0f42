// Steps that join several ops: by one kernel, or op by op.
#include "kernels/cuda/program_steps.h"

namespace vitsparse::cuda {
namespace {

using format::Op;

// All of a sum that a step makes for itself, but for its sources.
template <class S>
SumNormParams sum_of(const ProgramBase& base, const S& s) {
  SumNormParams params{};
  params.offset = base.weights_or_null(s.offset_offset);
  params.offset_stride = s.offset_rows == 1 ? 0 : s.width;
  params.sum = view_of(base, s.sum);
  params.batch = base.batch;
  params.rows = static_cast<int>(s.dst.rows);
  params.width = static_cast<int>(s.width);
  params.eps = format::float_of_bits(s.eps_bits);
  return params;
}

// Sources from number `next` on, as many as params has room for.
template <class S>
int64_t take_sources(const ProgramBase& base, const int64_t* operands, int64_t next, SumNormParams& params) {
  const auto s = format::read<S>(operands);
  for (; next < s.adds + s.minuses && params.count + params.minuses < max_sources; ++next) {
    params.sources[params.count + params.minuses] = view_of(base, format::source_behind<S>(operands, next));
    ++(next < s.adds ? params.count : params.minuses);
  }
  return next;
}

// The sum and norm of any number of sources: of more than a launch takes, the sum so far is the first source of the next.
// It lies where the result will: in the sum, or in `normed`.
template <class S>
cudaError_t gather(const ProgramBase& base, const int64_t* operands, const View& normed, const Context& context) {
  const auto s = format::read<S>(operands);
  const SumNormParams whole = sum_of(base, s);
  const View so_far = s.sum.wanted() ? whole.sum : normed;
  for (int64_t next = 0;;) {
    SumNormParams params = whole;
    if (next > 0) {
      params.offset = nullptr;
      params.sources[params.count++] = so_far;
    }
    next = take_sources<S>(base, operands, next, params);
    const bool last = next == s.adds + s.minuses;
    if (last) params.normed = normed; else params.sum = so_far;
    const cudaError_t status = sum_norm(params, context);
    if (last || status != cudaSuccess) return status;
  }
}

// [batch, rows, columns] in scratch memory, `before` numbers per image behind its beginning.
View scratch_view(const ProgramBase& base, void* scratch, int64_t rows, int64_t columns, int64_t before = 0) {
  return {static_cast<unsigned char*>(scratch) + before * base.batch * base.number_bytes, rows * padded_inputs(columns),
          padded_inputs(columns)};
}

// Columns of a view from `first` on.
View columns_of(const ProgramBase& base, const View& view, int64_t first) {
  return {static_cast<unsigned char*>(view.data) + first * base.number_bytes, view.image_stride, view.row_stride};
}

MlpParams mlp_of(const ProgramBase& base, const int64_t* operands) {
  const auto s = format::read<format::Mlp>(operands);
  MlpParams params{sum_of(base, s), view_of(base, s.dst), base.weights_at(s.weight1_offset),
                   base.weights_at(s.bias1_offset), base.weights_at(s.weight2_offset), base.weights_or_null(s.bias2_offset),
                   padded_inputs(s.width), padded_inputs(s.hidden), static_cast<int>(s.hidden), static_cast<int>(s.outputs)};
  take_sources<format::Mlp>(base, operands, 0, params.input);
  return params;
}

cudaError_t mlp_by_parts(const ProgramBase& base, const int64_t* operands, void* scratch, const Context& context) {
  const MlpParams mlp = mlp_of(base, operands);
  const int batch = base.batch, rows = mlp.input.rows, width = mlp.input.width;
  const View normed = scratch_view(base, scratch, rows, width);
  const View hidden = scratch_view(base, scratch, rows, mlp.hidden, rows * padded_inputs(width));
  const cudaError_t gathered = gather<format::Mlp>(base, operands, normed, context);
  if (gathered != cudaSuccess) return gathered;
  const cudaError_t first = linear({normed, hidden, mlp.weight1, mlp.weight1_stride, mlp.bias1, 0, batch, rows, width,
                                    mlp.hidden, true, false}, context);
  if (first != cudaSuccess) return first;
  return linear({hidden, mlp.dst, mlp.weight2, mlp.weight2_stride, mlp.bias2, 0, batch, rows, mlp.hidden, mlp.outputs,
                 false, false}, context);
}

cudaError_t qkv_by_parts(const ProgramBase& base, const QkvAttentionParams& s, void* scratch, const Context& context) {
  const int columns = s.heads * s.head_dim;
  const View qkv = scratch_view(base, scratch, s.tokens, 3 * columns);
  const cudaError_t status = linear({s.src, qkv, s.weight, s.weight_stride, s.bias, 0, s.batch, s.tokens, s.inputs,
                                     3 * columns, false, false}, context);
  if (status != cudaSuccess) return status;
  return attention({qkv, s.dst, columns_of(base, qkv, columns), columns_of(base, qkv, 2 * columns), s.head_keep, s.batch,
                    s.heads, s.head_dim, s.tokens, s.tokens, s.scale}, context);
}

NormLinearParams whole_norm_linear(const ProgramBase& base, const int64_t* operands) {
  NormLinearParams params = norm_linear_of(base, operands);
  for (int i = 0; i < params.count + params.minuses; ++i)
    params.sources[i] = view_of(base, format::source_behind<format::NormLinear>(operands, i));
  return params;
}

cudaError_t norm_linear_by_parts(const ProgramBase& base, const int64_t* operands, void* scratch, const Context& context) {
  LinearParams product = norm_linear_of(base, operands).product;
  product.src = scratch_view(base, scratch, product.rows, product.inputs);
  const cudaError_t status = gather<format::NormLinear>(base, operands, product.src, context);
  return status == cudaSuccess ? linear(product, context) : status;
}

// Whether one kernel does the whole step: it can; and, for NORM_LINEAR, rows are few enough for its small tile.
bool at_once(const ProgramBase& base, const format::Step& step, const Context& context) {
  const int64_t* operands = step.operands;
  if (step.op == Op::mlp)
    return format::gathers<format::Mlp>(operands) <= max_sources && mlp_fits(mlp_of(base, operands), context);
  if (step.op == Op::qkv_attention) return qkv_attention_fits(qkv_attention_of(base, operands), context);
  const NormLinearParams params = norm_linear_of(base, operands);
  return format::gathers<format::NormLinear>(operands) <= max_gathered && norm_linear_fits(params, context) &&
         linear_tile(params.product, context) == LinearTile::small;
}

// Numbers per image between the parts of a step.
int64_t between(const format::Step& step) {
  const int64_t* operands = step.operands;
  if (step.op == Op::mlp) {
    const auto s = format::read<format::Mlp>(operands);
    return s.dst.rows * (padded_inputs(s.width) + padded_inputs(s.hidden));
  }
  if (step.op == Op::qkv_attention) {
    const auto s = format::read<format::QkvAttention>(operands);
    return s.dst.rows * padded_inputs(3 * s.heads * s.head_dim);
  }
  const auto s = format::read<format::NormLinear>(operands);
  return s.dst.rows * padded_inputs(s.width);
}

}  // namespace

int64_t joined_scratch(const ProgramBase& base, const format::Step& step, const Context& context) {
  const bool joined = step.op == Op::mlp || step.op == Op::qkv_attention || step.op == Op::norm_linear;
  return joined && !at_once(base, step, context) ? between(step) : 0;
}

cudaError_t launch_joined(const ProgramBase& base, const format::Step& step, void* scratch, const Context& context) {
  const bool whole = at_once(base, step, context);
  const int64_t* operands = step.operands;
  if (step.op == Op::mlp)
    return whole ? mlp(mlp_of(base, operands), context) : mlp_by_parts(base, operands, scratch, context);
  if (step.op == Op::norm_linear)
    return whole ? norm_linear(whole_norm_linear(base, operands), context)
                 : norm_linear_by_parts(base, operands, scratch, context);
  const QkvAttentionParams params = qkv_attention_of(base, operands);
  return whole ? qkv_attention(params, context) : qkv_by_parts(base, params, scratch, context);
}

}  // namespace vitsparse::cuda
