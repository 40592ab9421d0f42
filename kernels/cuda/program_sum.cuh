// SUM_NORM steps of any number of sources and parts: a warp walks all parts for its row, so that a part may use the sum of
// an earlier one. Each lane finds the row of one term in the words, 32 terms at once, and hands it round.
#pragma once
#include "kernels/cuda/program_operands.cuh"
#include "kernels/cuda/sum_norm.cuh"

namespace vitsparse::cuda {

// View of term `index` of a SUM_NORM: a source, or the sum that an earlier part stored.
__device__ inline format::View view_of_term(const int64_t* operands, int64_t index) {
  const int64_t sources = format::read<format::SumNorm>(operands).sources;
  if (index < sources) return format::source_of_sum(operands, index);
  const int64_t* words = format::parts_of_sum(operands);
  for (int64_t i = sources; i < index; ++i) words = format::next_part(words, format::read<format::SumPart>(words));
  return format::read<format::SumPart>(words).sum;
}

// The rows of the terms of one part: lane i holds that of term 32 * held + i.
template <class T>
struct TermRows {
  const ProgramBase& base;
  const int64_t *operands, *terms;
  int count, image, row;
  int held = -1;
  uint64_t mine = 0;

  // By all lanes of the warp, with equal arguments.
  __device__ __forceinline__ const T* operator()(int i) {
    if (i / 32 != held) {
      held = i / 32;
      const int term = 32 * held + static_cast<int>(threadIdx.x % 32);
      mine = term < count ? address(terms[term]) : 0;
    }
    return reinterpret_cast<const T*>(__shfl_sync(0xffffffffu, mine, i % 32));
  }

 private:
  __device__ __forceinline__ uint64_t address(int64_t index) const {
    return reinterpret_cast<uint64_t>(row_of<const T>(view_of(base, view_of_term(operands, index)), image, row));
  }
};

// Row `index` of all images, by one warp.
template <class T>
__device__ __forceinline__ void sum_rows(const ProgramBase& base, const SumRows& sum, int index) {
  const int image = index / sum.rows, row = index % sum.rows;
  const auto head = format::read<format::SumNorm>(sum.operands);
  const float eps = format::float_of_bits(head.eps_bits);
  const int64_t* words = format::parts_of_sum(sum.operands);
#pragma unroll 1
  for (int64_t i = 0; i < head.parts; ++i) {
    const auto part = format::read<format::SumPart>(words);
    const int adds = static_cast<int>(part.adds), minuses = static_cast<int>(part.minuses);
    const T* offset = static_cast<const T*>(base.weights_or_null(part.offset_offset));
    if (offset != nullptr && part.offset_rows != 1) offset += int64_t{row} * sum.width;
    TermRows<T> rows{base, sum.operands, words + format::words_of<format::SumPart>, adds + minuses, image, row};
    sum_norm_row<T>(sum.width, eps, adds, minuses, rows, offset, row_or_null<T>(view_of(base, part.sum), image, row),
                    row_or_null<T>(view_of(base, part.normed), image, row));
    __syncwarp();  // the next part may read what this one wrote
    words = format::next_part(words, part);
  }
}

// A task is a row for each warp of the block.
__host__ __device__ inline int sum_rows_tasks(int batch, const SumRows& sum, int threads) {
  return (batch * sum.rows + threads / 32 - 1) / (threads / 32);
}
template <class T>
__device__ __forceinline__ void sum_rows_task(const ProgramBase& base, const SumRows& sum, int task) {
  const int index = task * static_cast<int>(blockDim.x / 32) + static_cast<int>(threadIdx.x / 32);
  if (index < base.batch * sum.rows) sum_rows<T>(base, sum, index);
}

}  // namespace vitsparse::cuda
