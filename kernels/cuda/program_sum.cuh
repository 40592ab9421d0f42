// SUM_NORM steps of any number of sources and parts: a warp walks all parts for its row, so that a part may use the sum of
// an earlier one. First the threads of the block find in the words where everything lies, side by side, because each word
// that leads to another costs a trip to memory; the table lies in shared memory.
#pragma once
#include "kernels/cuda/program_operands.cuh"
#include "kernels/cuda/sum_norm.cuh"

namespace vitsparse::cuda {

struct SumPartRows {
  int adds, minuses;
  const void* offset;
  int64_t offset_stride;
  View sum, normed;
};

// A step and its size, as the host sees it.
struct SumSize {
  SumRows rows;
  int tasks, shared;
};
inline SumSize sum_size_of(const format::Step& step, int batch, int threads) {
  const SumRows rows = sum_rows_of(step.operands);
  const auto head = format::read<format::SumNorm>(step.operands);
  const int64_t before = format::words_of<format::SumNorm> + head.sources * format::words_of<format::View>;
  const int64_t terms = step.count - before - head.parts * format::words_of<format::SumPart>;
  const int64_t bytes = head.parts * int64_t{sizeof(SumPartRows)} + terms * int64_t{sizeof(View)};
  constexpr int64_t most = 1 << 30;  // far beyond what any device has
  const int warps = threads / 32;
  return {rows, (batch * rows.rows + warps - 1) / warps, static_cast<int>(bytes < most ? bytes : most)};
}

// View of term `index` of a SUM_NORM: a source, or the sum that an earlier part stored.
__device__ inline format::View view_of_term(const int64_t* operands, int64_t index) {
  const int64_t sources = format::read<format::SumNorm>(operands).sources;
  if (index < sources) return format::source_of_sum(operands, index);
  const int64_t* words = format::parts_of_sum(operands);
#pragma unroll 1
  for (int64_t i = sources; i < index; ++i) words = format::next_part(words, format::read<format::SumPart>(words));
  return format::read<format::SumPart>(words).sum;
}

// Fills parts[i], and one view for each term of all parts; by all threads.
__device__ __forceinline__ void read_sum(const ProgramBase& base, const SumRows& sum, SumPartRows* parts, View* terms) {
  const int64_t* words = format::parts_of_sum(sum.operands);
#pragma unroll 1
  for (int i = 0; i < sum.parts; ++i) {
    const auto part = format::read<format::SumPart>(words);
    const int adds = static_cast<int>(part.adds), minuses = static_cast<int>(part.minuses);
    if (threadIdx.x == 0)
      parts[i] = {adds, minuses, base.weights_or_null(part.offset_offset), part.offset_rows == 1 ? 0 : sum.width,
                  view_of(base, part.sum), view_of(base, part.normed)};
#pragma unroll 1
    for (int t = threadIdx.x; t < adds + minuses; t += blockDim.x)
      terms[t] = view_of(base, view_of_term(sum.operands, words[format::words_of<format::SumPart> + t]));
    terms += adds + minuses;
    words = format::next_part(words, part);
  }
  __syncthreads();
}

// Row `index` of all images, by one warp.
template <class T>
__device__ __forceinline__ void sum_rows(const SumRows& sum, const SumPartRows* parts, const View* terms, int index) {
  const int image = index / sum.rows, row = index % sum.rows;
#pragma unroll 1
  for (int i = 0; i < sum.parts; ++i) {
    const SumPartRows& part = parts[i];
    const T* offset = static_cast<const T*>(part.offset);
    sum_norm_row<T>(sum.width, sum.eps, part.adds, part.minuses,
                    [&](int t) -> const T* { return row_of<const T>(terms[t], image, row); },
                    offset == nullptr ? nullptr : offset + row * part.offset_stride,
                    row_or_null<T>(part.sum, image, row), row_or_null<T>(part.normed, image, row));
    __syncwarp();  // the next part may read what this one wrote
    terms += part.adds + part.minuses;
  }
}

// A task is a row for each warp of the block.
template <class T>
__device__ __forceinline__ void sum_rows_task(const ProgramBase& base, const SumRows& sum, int task) {
  auto* parts = reinterpret_cast<SumPartRows*>(shared_memory());
  auto* terms = reinterpret_cast<View*>(parts + sum.parts);
  read_sum(base, sum, parts, terms);
  const int index = task * static_cast<int>(blockDim.x / 32) + static_cast<int>(threadIdx.x / 32);
  if (index < base.batch * sum.rows) sum_rows<T>(sum, parts, terms, index);
  __syncthreads();
}

}  // namespace vitsparse::cuda
