// SUM_NORM steps of any number of sources and parts.
//
// A task is a few rows of a chunk of parts. Few rows: a chunk is one part, so that many warps share the work. Many
// rows: a chunk is what fits into registers side by side (sum_parts.cuh), so that a source is read once for all of it;
// of wide rows one part fits. `apart`: one part in any case; the kernels of whole waves have no registers for more.
// Chunks that need each other, because a part starts from an earlier one or overwrites a
// source, are one task: a warp walks them in order for its rows.
//
// Each word that leads to another costs a trip to memory. So a block first copies all words of the step to shared
// memory, then finds there side by side where everything lies.
#pragma once
#include "kernels/cuda/program_operands.cuh"
#include "kernels/cuda/sum_parts.cuh"

namespace vitsparse::cuda {

constexpr int most_chunks = 32;     // a bit each
constexpr int most_entries = 1024;  // sources and parts that are told apart: 32 bits a lane

// How a step is cut into tasks; for the host and the device alike.
struct SumShape {
  int chunk, chunks;  // parts of a chunk
  int rows_of_warp;
};
VITSPARSE_HD inline SumShape sum_shape(int rows, int parts, int width, int warps, bool apart) {
  constexpr int few_rows = 256, enough_tasks = 512;
  const int side = apart || rows < few_rows ? 1 : sums_side_by_side(width);
  const int pieces = (parts + side - 1) / side, limit = pieces < most_chunks ? pieces : most_chunks;
  const int chunk = (parts + limit - 1) / limit, chunks = (parts + chunk - 1) / chunk;
  const int rows_of_warp = rows / warps / enough_tasks * chunks;
  return {chunk, chunks, rows_of_warp < 1 ? 1 : rows_of_warp > 4 ? 4 : rows_of_warp};
}

// What a block knows of a step, in shared memory: this, and behind it, as long as the step wants
//   SharedTerm[sources + parts + most_sums]  of the chunk at work
//   SumPartRows[parts]
//   View[sources + parts]                    of sources, then of the parts' sums
//   int64_t[words]                           operands of the step
struct alignas(16) SumTable {
  uint32_t links[most_chunks];    // chunks that a chunk needs; not all: see linked_with()
  uint32_t adds[most_sums][32];   // entries that a part at work adds, 32 in a number
  uint32_t earlier[most_sums];    // parts at work that a part at work adds
  int odd[most_sums];             // whether it is none for sum_parts.cuh
  int terms_count;                // how many terms are listed, or -1: some part is odd

  static VITSPARSE_HD int64_t bytes(int64_t words, int64_t sources, int64_t parts) {
    return int64_t{sizeof(SumTable)} + (sources + parts + most_sums) * int64_t{sizeof(SharedTerm)} +
           parts * int64_t{sizeof(SumPartRows)} + (sources + parts) * int64_t{sizeof(View)} + words * 8;
  }
};

// A step and its size, as the host sees it.
struct SumSize {
  SumRows rows;
  int tasks, shared;
};
inline SumSize sum_size_of(const format::Step& step, int batch, int threads, bool apart) {
  const SumRows rows = sum_rows_of(step.operands);
  const int64_t sources = format::read<format::SumNorm>(step.operands).sources, all = int64_t{batch} * rows.rows;
  const int warps = threads / 32;
  const SumShape shape = sum_shape(static_cast<int>(all), rows.parts, rows.width, warps, apart);
  const int64_t rows_of_task = warps * shape.rows_of_warp;
  const int64_t tasks = (all + rows_of_task - 1) / rows_of_task * shape.chunks;
  const int64_t bytes = SumTable::bytes(step.count, sources, rows.parts);
  constexpr int64_t most = 1 << 30, most_tasks = 0x7fffffff;  // bytes beyond what any device has
  return {rows, static_cast<int>(tasks < most_tasks ? tasks : most_tasks),
          static_cast<int>(bytes < most && tasks <= most_tasks ? bytes : most)};
}

// A step as one warp after the other works on it.
template <class T, bool apart>
class SumWork {
 public:
  __device__ __forceinline__ SumWork(const ProgramBase& base, const SumRows& sum, const SumShape& shape)
      : base_(base), sum_(sum), shape_(shape),
        sources_(static_cast<int>(format::read<format::SumNorm>(sum.operands).sources)) {}

  // Fills what all chunks share; by all threads.
  __device__ __forceinline__ void read() {
    const int count = static_cast<int>(format::step_at(sum_.operands - format::step_head).count);
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += blockDim.x) words()[i] = sum_.operands[i];
    if (threadIdx.x < most_chunks) table().links[threadIdx.x] = 0;
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < sources_ + sum_.parts; i += blockDim.x) {
      if (i < sources_) {
        views()[i] = view_of(base_, format::source_of_sum(words(), i));
      } else {
        read_part(i - sources_);
      }
    }
    __syncthreads();
    if (shape_.chunks > 1) link_chunks();
  }

  // The chunks that one warp must walk with `chunk`, as bits: all that are linked with it, through others too.
  __device__ __forceinline__ uint32_t linked_with(int chunk) const {
    if (shape_.chunks == 1) return 1;
    const uint32_t links = table().links[threadIdx.x % 32];
    uint32_t group = 1u << chunk;
    while (true) {
      const uint32_t grows = __ballot_sync(0xffffffffu, (links & group) != 0 && (links & ~group) != 0);
      if (grows == 0) return group;
      group |= __shfl_sync(0xffffffffu, links, __ffs(static_cast<int>(grows)) - 1);
    }
  }

  // Rows first, first + step, ... of all images, `rows_of_warp` of them, by each warp.
  __device__ __forceinline__ void run(int chunk, int first) {
    const int end = min_of(sum_.parts, (chunk + 1) * shape_.chunk), side = apart ? 1 : sums_side_by_side(sum_.width);
#pragma unroll 1
    for (int part = chunk * shape_.chunk; part < end; part += side) {
      const int count = min_of(side, end - part);
      bool shared = false;
      if constexpr (!apart) shared = shape_.chunk > 1 && count > 1 && list_terms(part, count);
#pragma unroll 1
      for (int r = 0; r < shape_.rows_of_warp; ++r) {
        const int index = first + r * static_cast<int>(blockDim.x / 32);
        if (index >= base_.batch * sum_.rows) break;
        const int image = index / sum_.rows, row = index % sum_.rows;
        if constexpr (!apart) {
          if (shared) {
            const SideBySide sums{parts() + part, terms(), table().earlier, count, table().terms_count};
            sum_row_side_by_side<T, most_sums, 8>(sum_.width, sum_.eps, sums, image, row);
          }
        }
        if (!shared) run_one_by_one(part, count, image, row);
        __syncwarp();  // what comes next may read what this wrote
      }
    }
  }

 private:
  static __device__ __forceinline__ SumTable& table() { return *reinterpret_cast<SumTable*>(shared_memory()); }
  static __device__ __forceinline__ SharedTerm* terms() {
    return reinterpret_cast<SharedTerm*>(shared_memory() + sizeof(SumTable));
  }
  __device__ __forceinline__ SumPartRows* parts() const {
    return reinterpret_cast<SumPartRows*>(terms() + sources_ + sum_.parts + most_sums);
  }
  __device__ __forceinline__ View* views() const { return reinterpret_cast<View*>(parts() + sum_.parts); }
  __device__ __forceinline__ int64_t* words() const {
    return reinterpret_cast<int64_t*>(views() + sources_ + sum_.parts);
  }

  // Term t of a part: its number among the views.
  __device__ __forceinline__ int entry(const SumPartRows& part, int t) const {
    return static_cast<int>(words()[part.terms + t]);
  }
  static __device__ __forceinline__ int min_of(int a, int b) { return a < b ? a : b; }

  __device__ __forceinline__ void read_part(int number) {
    const int64_t* at = format::parts_of_sum(words());
#pragma unroll 1
    for (int i = 0; i < number; ++i)
      at += format::words_of<format::SumPart> + at[0] + at[1];  // adds, minuses
    const auto part = format::read<format::SumPart>(at);
    parts()[number] = {static_cast<int>(at + format::words_of<format::SumPart> - words()),
                            static_cast<int>(part.adds),
                            static_cast<int>(part.minuses),
                            base_.weights_or_null(part.offset_offset),
                            part.offset_rows == 1 ? 0 : sum_.width,
                            view_of(base_, part.sum),
                            view_of(base_, part.normed)};
    views()[sources_ + number] = parts()[number].sum;
  }

  __device__ __forceinline__ void link_chunks() {
    const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
    for (int chunk = threadIdx.x / 32; chunk < shape_.chunks; chunk += warps) {
      const int end = min_of(sum_.parts, (chunk + 1) * shape_.chunk);
      uint32_t links = 1u << chunk;
#pragma unroll 1
      for (int p = chunk * shape_.chunk; p < end; ++p) {
        const SumPartRows& part = parts()[p];
#pragma unroll 1
        for (int t = lane; t < part.adds + part.minuses; t += 32) {
          const int earlier = entry(part, t) - sources_;
          if (earlier >= 0) links |= 1u << earlier / shape_.chunk;
        }
        // What overwrites a source comes after all that read it.
#pragma unroll 1
        for (int s = lane; s < sources_; s += 32) {
          const void* data = views()[s].data;
          if (data == part.sum.data || data == part.normed.data) links = 0xffffffffu;
        }
      }
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) links |= __shfl_xor_sync(0xffffffffu, links, distance);
      if (lane == 0) table().links[chunk] = links;
    }
    __syncthreads();
  }

  // Lists what `count` parts from `first` on add; false, and no list, if they are none for sum_parts.cuh.
  __device__ __forceinline__ bool list_terms(int first, int count) {
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    __syncthreads();  // nobody needs the list before
#pragma unroll 1
    for (int p = warp; p < count; p += warps) note_terms(first, p);
    __syncthreads();
    if (warp == 0) merge_terms(first, count);
    __syncthreads();
    return table().terms_count >= 0;
  }

  // By a warp: lane l knows of entries 32 l to 32 l + 31.
  __device__ __forceinline__ void note_terms(int first, int p) {
    const SumPartRows& part = parts()[first + p];
    const int lane = threadIdx.x % 32, at_work = sources_ + first;
    uint32_t mine = 0, earlier = 0;
    bool odd = part.minuses > 0;
#pragma unroll 4
    for (int t = 0; t < part.adds; ++t) {
      const int number = entry(part, t);
      const bool inside = number >= at_work;
      const uint32_t bit = inside ? 1u << (number - at_work) : number / 32 == lane ? 1u << number % 32 : 0;
      odd = odd || ((inside ? earlier : mine) & bit) != 0 || (!inside && number >= most_entries);  // twice the same
      if (inside) earlier |= bit;
      else mine |= bit;
    }
    odd = __any_sync(0xffffffffu, odd);
    table().adds[p][lane] = mine;
    if (lane == 0) table().earlier[p] = earlier;
    if (lane == 0) table().odd[p] = odd;
  }

  // By a warp: one list of all entries that some part adds, then of the offsets.
  __device__ __forceinline__ void merge_terms(int first, int count) {
    const int lane = threadIdx.x % 32;
    const SumPartRows& part = parts()[first + (lane < count ? lane : 0)];
    bool fits = sum_.width % per_16_bytes<T> == 0 && in_vectors(part.sum) && in_vectors(part.normed) &&
                (lane >= count || table().odd[lane] == 0);
    int listed = 0;
#pragma unroll 1
    for (int from = 0; from < sources_ + first && from < most_entries; from += 32) {
      uint32_t wanted = 0;
#pragma unroll 1
      for (int p = 0; p < count; ++p) wanted |= (table().adds[p][from / 32] >> lane & 1) << p;
      list(wanted, wanted == 0 ? View{} : views()[from + lane], listed, fits);
    }
    const bool shifted = lane < count && part.offset != nullptr;
    list(shifted ? 1u << lane : 0, {const_cast<void*>(part.offset), 0, part.offset_stride}, listed, fits);
    fits = __all_sync(0xffffffffu, fits);
    if (lane == 0) table().terms_count = fits ? listed : -1;
  }

  static __device__ __forceinline__ bool in_vectors(const View& view) {
    return is_aligned(view.data) && (view.image_stride | view.row_stride) % per_16_bytes<T> == 0;
  }

  // Of each lane, a view if it is wanted.
  __device__ __forceinline__ void list(uint32_t wanted, const View& view, int& listed, bool& fits) {
    const uint32_t lanes = __ballot_sync(0xffffffffu, wanted != 0);
    const uint32_t before = (1u << threadIdx.x % 32) - 1;
    if (wanted != 0) {
      terms()[listed + __popc(lanes & before)] = {view, wanted};
      fits = fits && in_vectors(view);
    }
    listed += __popc(lanes);
  }

  __device__ __forceinline__ void run_one_by_one(int first, int count, int image, int row) const {
#pragma unroll 1
    for (int p = first; p < first + count; ++p) {
      const SumPartRows& part = parts()[p];
      const T* offset = static_cast<const T*>(part.offset);
      sum_norm_row<T>(sum_.width, sum_.eps, part.adds, part.minuses,
                      [&](int t) -> const T* { return row_of<const T>(views()[entry(part, t)], image, row); },
                      offset == nullptr ? nullptr : offset + row * part.offset_stride,
                      row_or_null<T>(part.sum, image, row), row_or_null<T>(part.normed, image, row));
      __syncwarp();  // the next part may read what this one wrote
    }
  }

  const ProgramBase& base_;
  const SumRows& sum_;
  const SumShape shape_;
  const int sources_;
};

template <class T, bool apart>
__device__ __forceinline__ void sum_rows_task(const ProgramBase& base, const SumRows& sum, int task) {
  const int warps = blockDim.x / 32;
  const SumShape shape = sum_shape(base.batch * sum.rows, sum.parts, sum.width, warps, apart);
  SumWork<T, apart> work(base, sum, shape);
  work.read();
  const int mine = task % shape.chunks;
  const int first = task / shape.chunks * warps * shape.rows_of_warp + static_cast<int>(threadIdx.x / 32);
  const uint32_t group = work.linked_with(mine);
  if (__ffs(static_cast<int>(group)) - 1 == mine) {  // the first of its group walks all of them
#pragma unroll 1
    for (int chunk = mine; chunk < shape.chunks; ++chunk)
      if (group >> chunk & 1) work.run(chunk, first);
  }
  __syncthreads();
}

}  // namespace vitsparse::cuda
