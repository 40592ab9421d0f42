// The level that every machine has: 4 floats in plain C++, which compilers turn into SSE2 or NEON.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Vec {
  static constexpr int W = 4;
  static constexpr int max_tile_rows = 6;
  static constexpr int few_rows = 2;
  typedef float Four __attribute__((vector_size(16)));
  Four v;

  static Vec set(float x) { return {Four{x, x, x, x}}; }
  static Vec load(const float* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof(Four));
    return r;
  }
  static Vec load(const float* p, int n) {
    Vec r = set(0.f);
    for (int i = 0; i < n; ++i) r.v[i] = p[i];
    return r;
  }
  void store(float* p) const { std::memcpy(p, &v, sizeof(Four)); }
  void store(float* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
};

inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }  // b where either is NaN
inline Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
inline Vec round(Vec a) {
  const Vec shift = Vec::set(12582912.f);  // 1.5 * 2^23: adding it leaves no fraction bits
  return (a + shift) - shift;
}
inline Vec scale_by_power(Vec a, Vec n) {
  Vec power;
  for (int i = 0; i < Vec::W; ++i) {
    // The conversion of a NaN is undefined in C++; a is NaN there already, so any power will do.
    const int32_t exponent = n.v[i] == n.v[i] ? static_cast<int32_t>(n.v[i]) + 127 : 127;
    const uint32_t bits = static_cast<uint32_t>(exponent) << 23;
    std::memcpy(reinterpret_cast<char*>(&power.v) + sizeof(float) * i, &bits, sizeof(float));
  }
  return a * power;
}
inline Vec keep_first(Vec a, int n, Vec other) {
  for (int i = n; i < Vec::W; ++i) a.v[i] = other.v[i];
  return a;
}
inline float sum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline float largest(Vec a) {
  const float x = a.v[0] > a.v[1] ? a.v[0] : a.v[1], y = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return x > y ? x : y;
}

}  // namespace
