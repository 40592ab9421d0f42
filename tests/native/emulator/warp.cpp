// What the lanes of a warp do together: products, loads of matrices, exchanges.
#include <cstring>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "kernels/cuda/ptx.cuh"

namespace emulator {
namespace {

using Row = float __attribute__((vector_size(32)));  // eight columns

const float* halves() {
  static const float* const table = [] {
    auto* const made = new float[1 << 16];
    for (int i = 0; i < 1 << 16; ++i) made[i] = float_of_half(static_cast<uint16_t>(i));
    return made;
  }();
  return table;
}

struct HalfTable {
  const float* table = halves();
  float operator()(uint32_t bits) const { return table[bits & 0xffff]; }
};
struct FromBfloat16 {
  float operator()(uint32_t bits) const { return float_of_bfloat16(static_cast<uint16_t>(bits)); }
};

struct Factors {
  float a[16][16];
  float b[16][8];
};

// From the fragments of the lanes (see ptx.cuh) to matrices.
template <class Decode>
void gather(Factors& factors, void* const (&lanes)[32], Decode decode) {
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& mma = *static_cast<const Mma*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      float* const to = &factors.a[g + 8 * (i % 2)][2 * t + 8 * (i / 2)];
      to[0] = decode(mma.a[i]), to[1] = decode(mma.a[i] >> 16);
    }
    for (int i = 0; i < 2; ++i) {
      factors.b[2 * t + 8 * i][g] = decode(mma.b[i]);
      factors.b[2 * t + 8 * i + 1][g] = decode(mma.b[i] >> 16);
    }
  }
}

// sums += the products of `count` numbers of k from `first` on.
void multiply(Row (&sums)[16], const Factors& factors, int first, int count) {
  Row b[16];
  std::memcpy(b, factors.b, sizeof(b));
  for (int r = 0; r < 16; ++r)
    for (int k = first; k < first + count; ++k) sums[r] += factors.a[r][k] * b[k];
}

template <class Decode>
void mma_float_sums(void* const (&lanes)[32], Decode decode) {
  Factors factors;
  gather(factors, lanes, decode);
  Row sums[16];
  const auto sums_of = [&](int lane) { return static_cast<float*>(static_cast<const Mma*>(lanes[lane])->sums); };
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = sums_of(lane)[i];
  multiply(sums, factors, 0, 16);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) sums_of(lane)[i] = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
}

// Sums in float16, rounded after every `step` numbers of k.
void mma_half_sums(void* const (&lanes)[32], int step) {
  Factors factors;
  const HalfTable decode;
  gather(factors, lanes, decode);
  Row sums[16];
  const auto sums_of = [&](int lane) { return static_cast<uint32_t*>(static_cast<const Mma*>(lanes[lane])->sums); };
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = decode(sums_of(lane)[i / 2] >> 16 * (i % 2));
  for (int first = 0; first < 16; first += step) {
    multiply(sums, factors, first, step);
    for (auto& row : sums)
      for (int c = 0; c < 8; ++c) row[c] = decode(half_of_float(row[c]));
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 2; ++i) {
      const Row& row = sums[lane / 4 + 8 * i];
      const int c = 2 * (lane % 4);
      sums_of(lane)[i] = half_of_float(row[c]) | static_cast<uint32_t>(half_of_float(row[c + 1])) << 16;
    }
}

}  // namespace

void mma_half_k16(void* const (&lanes)[32]) { mma_float_sums(lanes, HalfTable{}); }
void mma_bfloat16_k16(void* const (&lanes)[32]) { mma_float_sums(lanes, FromBfloat16{}); }
void mma_half_sums_k8(void* const (&lanes)[32]) { mma_half_sums(lanes, 8); }
void mma_half_sums_k16(void* const (&lanes)[32]) { mma_half_sums(lanes, 16); }

void load_matrices(void* const (&lanes)[32]) {
  for (int matrix = 0; matrix < 4; ++matrix)
    for (int lane = 0; lane < 32; ++lane) {
      const auto* const row = static_cast<const Matrices*>(lanes[8 * matrix + lane / 4])->row;
      std::memcpy(&static_cast<Matrices*>(lanes[lane])->to[matrix], static_cast<const char*>(row) + 4 * (lane % 4), 4);
    }
}

void load_matrices_transposed(void* const (&lanes)[32]) {
  for (int matrix = 0; matrix < 4; ++matrix)
    for (int lane = 0; lane < 32; ++lane) {
      const auto number = [&](int row) {
        uint16_t bits;
        const auto* const from = static_cast<const Matrices*>(lanes[8 * matrix + row])->row;
        std::memcpy(&bits, static_cast<const char*>(from) + 2 * (lane / 4), 2);
        return uint32_t{bits};
      };
      static_cast<Matrices*>(lanes[lane])->to[matrix] = number(2 * (lane % 4)) | number(2 * (lane % 4) + 1) << 16;
    }
}

void exchange(void* const (&lanes)[32]) {
  uint64_t values[32];
  for (int lane = 0; lane < 32; ++lane) values[lane] = static_cast<const Exchange*>(lanes[lane])->value;
  for (void* lane : lanes) static_cast<Exchange*>(lane)->value = values[static_cast<Exchange*>(lane)->source];
}

void vote(void* const (&lanes)[32]) {
  uint64_t votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= *static_cast<const uint64_t*>(lanes[lane]) << lane;
  for (void* lane : lanes) *static_cast<uint64_t*>(lane) = votes;
}

void meet(void* const (&)[32]) {}
void meet_here(void* const (&)[32]) {}

}  // namespace emulator
