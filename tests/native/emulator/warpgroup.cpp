// Products of four warps, straight from shared memory: asynchronous, so nothing happens before they are waited for, and the
// sums are NaN meanwhile. What the instructions read must have been written before a barrier, and before a fence of the
// thread that wrote it.
#include <algorithm>
#include <cstring>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "kernels/cuda/wgmma.cuh"
#include "machine.h"

namespace emulator {
namespace {

constexpr int numbers = 64;  // sums of a lane: 16 tiles of 16 x 8
constexpr int columns = 128, row_bytes = 128, step_bytes = 32;

Lane& self() { return *static_cast<Lane*>(current); }

// Where the hardware finds `byte` of a row: bits 4 to 6 of the address are swizzled with bits 7 to 9.
const unsigned char* place_of(const void* tile, int row, int byte) {
  const auto address = reinterpret_cast<uintptr_t>(tile) + row * row_bytes + byte;
  return reinterpret_cast<const unsigned char*>(address ^ (address >> 7 & 7) << 4);
}

void read_rows(const void* tile, int first, int rows, const void* code) {
  for (int row = first; row < first + rows; ++row)
    for (int byte = 0; byte < step_bytes; byte += 16)
      touched_shared(place_of(tile, row, byte), 16, Touch::async_read, code);
}

// Each lane looks at its share of what the warp reads.
void read_share(const Product& product) {
  const int lane = self().index.x % 32, warp = self().index.x / 32 % 4;
  if (lane < 16) read_rows(product.a, 16 * warp + lane, 1, product.code);
  read_rows(product.b, 4 * lane, 4, product.code);
}

float number_at(const void* tile, int row, int k, bool half) {
  uint16_t bits;
  std::memcpy(&bits, place_of(tile, row, 2 * k), 2);
  return half ? float_of_half(bits) : float_of_bfloat16(bits);
}

void multiply(const Product& product, void* const (&lanes)[32], int warp, bool half) {
  float a[16][16], b[columns][16];
  for (int k = 0; k < 16; ++k) {
    for (int row = 0; row < 16; ++row) a[row][k] = number_at(product.a, 16 * warp + row, k, half);
    for (int column = 0; column < columns; ++column) b[column][k] = number_at(product.b, column, k, half);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < numbers; ++i) {
      const int row = lane / 4 + 8 * (i % 4 / 2), column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
      float& sum = static_cast<float*>(lanes[lane])[i];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
    }
}

template <bool half>
void multiply_all(void* const (&lanes)[32]) {
  for (const Product& product : self().products) multiply(product, lanes, self().index.x / 32 % 4, half);
}

// The same instructions in the same order, for all lanes of all four warps.
void require_agreement(Site site) {
  const Lane& me = self();
  Block& block = *me.warp->block;
  const size_t group = me.index.x / 128;
  if (block.products.size() <= group) block.products.resize(group + 1);
  auto& log = block.products[group];
  for (const Product& product : me.products) {
    const size_t place = product.number;
    if (place == log.size()) log.push_back(product);
    if (log[place].a != product.a || log[place].b != product.b)
      fault("block %u, thread %u: product %zu of a warpgroup, which ends at %s:%d, has other operands than for "
            "another thread", me.block.x, me.index.x, place, site.file, site.line);
  }
}

}  // namespace

void fence_async_proxy() { ++self().fences; }

void begin_products(float* sums, Site site) {
  Lane& me = self();
  if (machine.launch->threads % 128) fault("a warpgroup at %s:%d in a block of %d threads", site.file, site.line,
                                           machine.launch->threads);
  together(meet_here, "WarpGroup::begin", nullptr, site);
  me.open_sums.assign(sums, sums + numbers);
  std::fill(sums, sums + numbers, __builtin_nanf(""));
}

__attribute__((noinline)) void multiply_later(float*, const void* a, const void* b, Site site) {
  Lane& me = self();
  if (me.open_sums.empty()) fault("block %u, thread %u: a product at %s:%d before begin()", me.block.x, me.index.x,
                                  site.file, site.line);
  for (const void* tile : {a, b})
    if (reinterpret_cast<uintptr_t>(tile) % 1024 >= row_bytes || reinterpret_cast<uintptr_t>(tile) % step_bytes)
      fault("block %u, thread %u: at %s:%d a tile does not begin at a multiple of 1024", me.block.x, me.index.x, site.file,
            site.line);
  me.products.push_back({a, b, __builtin_return_address(0), me.product_count++});
  read_share(me.products.back());
}

void end_products(bool half, float* sums, Site site) {
  Lane& me = self();
  std::copy(me.open_sums.begin(), me.open_sums.end(), sums);
  me.open_sums.clear();
  for (const Product& product : me.products) read_share(product);
  require_agreement(site);
  together(half ? multiply_all<true> : multiply_all<false>, "WarpGroup::end", sums, site);
  me.products.clear();
}

}  // namespace emulator
