// sources: kernels/cpu/sum_norm.cpp kernels/cpu/sum_norm_avx2.cpp kernels/cpu/sum_norm_avx512.cpp kernels/cpu/isa.cpp kernels/cpu/workspace.cpp
// Sums in parts against the formula in double, for each instruction set: parts that start from earlier ones, differences,
// parts of nothing, sums in place of a source, rows that are not contiguous, poisoned results, nothing written between.
#include "kernels/cpu/sum_norm.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/isa.h"

using namespace vitsparse::cpu;

namespace {

constexpr float poison = std::numeric_limits<float>::quiet_NaN();
constexpr float eps = 1e-5f;

struct Shape {
  int64_t images, rows, width, sources, parts;
};

// [images, rows, width] whose rows lie `gap` floats apart: exactly as long as its last row needs.
struct Block {
  std::vector<float> data;
  int64_t image_stride, row_stride;
  Block(const Shape& s, int64_t gap) : image_stride(s.rows * (s.width + gap)), row_stride(s.width + gap) {
    data.assign(s.images * image_stride - gap, poison);
  }
  float& at(int64_t image, int64_t row, int64_t column) { return data[image * image_stride + row * row_stride + column]; }
  MutableRows rows() { return {data.data(), image_stride, row_stride}; }
  Rows constant() const { return {data.data(), image_stride, row_stride}; }
};

struct Case {
  Shape shape;
  std::vector<Block> sources, sums, normed;
  std::vector<std::vector<int64_t>> adds, minuses;
  std::vector<std::vector<float>> offsets;
  std::vector<SumPart> parts;
  std::vector<std::vector<double>> exact;  // of each part, [images, rows, width]
};

// Every second offset is the same for each row.
int64_t offset_rows(const Shape& s, int64_t part) { return part % 4 == 0 ? s.rows : 1; }

void draw_terms(Case& c, std::mt19937& generator) {
  const Shape& s = c.shape;
  for (int64_t p = 0; p < s.parts; ++p) {
    c.adds.emplace_back();
    c.minuses.emplace_back();
    for (int64_t i = 0; i < s.sources + p; ++i) {
      const bool stored = i < s.sources || (i - s.sources) % 3 != 2;  // every third part keeps only its norm
      if (p % 5 != 4 && stored && generator() % 2) (generator() % 4 ? c.adds : c.minuses)[p].push_back(i);
    }
    c.offsets.emplace_back(p % 2 ? 0 : offset_rows(s, p) * s.width);
    for (float& x : c.offsets[p]) x = static_cast<float>(generator() % 2000) * 1e-3f - 1.f;
  }
}

void compute_exactly(Case& c) {
  const Shape& s = c.shape;
  for (int64_t p = 0; p < s.parts; ++p) {
    c.exact.emplace_back();
    for (int64_t image = 0; image < s.images; ++image)
      for (int64_t r = 0; r < s.rows; ++r)
        for (int64_t column = 0; column < s.width; ++column) {
          const int64_t index = (image * s.rows + r) * s.width + column;
          const auto value = [&](int64_t i) {
            return i < s.sources ? c.sources[i].at(image, r, column) : c.exact[i - s.sources][index];
          };
          double x = c.offsets[p].empty() ? 0. : c.offsets[p][r % offset_rows(s, p) * s.width + column];
          for (int64_t i : c.adds[p]) x += value(i);
          for (int64_t i : c.minuses[p]) x -= value(i);
          c.exact[p].push_back(x);
        }
  }
}

// `in_place`: the last part's sum takes the place of source 0.
Case draw(const Shape& s, bool in_place) {
  std::mt19937 generator(static_cast<unsigned>(s.width + 31 * s.sources + 7 * s.parts + in_place));
  Case c{s, {}, {}, {}, {}, {}, {}, {}, {}};
  for (int64_t i = 0; i < s.sources; ++i) {
    c.sources.emplace_back(s, i % 3);
    for (int64_t image = 0; image < s.images; ++image)
      for (int64_t r = 0; r < s.rows; ++r)
        for (int64_t column = 0; column < s.width; ++column)
          c.sources[i].at(image, r, column) = static_cast<float>(generator() % 4000) * 1e-3f - 1.5f;
  }
  draw_terms(c, generator);
  compute_exactly(c);
  for (int64_t p = 0; p < s.parts; ++p) {
    c.sums.emplace_back(s, p % 2);
    c.normed.emplace_back(s, (p + 1) % 2);
  }
  for (int64_t p = 0; p < s.parts; ++p) {
    const bool takes_place = in_place && p == s.parts - 1 && s.sources > 0;
    if (takes_place) c.sums[p] = c.sources[0];
    c.parts.push_back({c.adds[p].data(), static_cast<int64_t>(c.adds[p].size()), c.minuses[p].data(),
                       static_cast<int64_t>(c.minuses[p].size()), c.offsets[p].empty() ? nullptr : c.offsets[p].data(),
                       offset_rows(s, p) == 1 ? 0 : s.width,
                       p % 3 == 2 ? MutableRows{} : c.sums[p].rows(), p % 4 == 3 ? MutableRows{} : c.normed[p].rows()});
  }
  return c;
}

// Whether what lies between two rows is as poisoned as before.
bool gaps_are_untouched(const Shape& s, const Block& block) {
  for (size_t i = 0; i < block.data.size(); ++i)
    if (static_cast<int64_t>(i) % block.row_stride >= s.width && !std::isnan(block.data[i])) return false;
  return true;
}

double worst_error(Case& c) {
  const Shape& s = c.shape;
  double worst = 0;
  const auto see = [&](double found, double wanted, double scale) {
    const double error = std::fabs(found - wanted) / scale;
    if (!(error <= worst)) worst = error;  // NaN as well
  };
  for (int64_t p = 0; p < s.parts; ++p)
    for (int64_t row = 0; row < s.images * s.rows; ++row) {
      const double* x = &c.exact[p][row * s.width];
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < s.width; ++i) mean += x[i] / s.width;
      for (int64_t i = 0; i < s.width; ++i) variance += (x[i] - mean) * (x[i] - mean) / s.width;
      const double deviation = std::sqrt(variance + eps);
      for (int64_t i = 0; i < s.width; ++i) {
        if (c.parts[p].sum.data) see(c.parts[p].sum.row(row / s.rows, row % s.rows)[i], x[i], 100);
        if (c.parts[p].normed.data)
          see(c.parts[p].normed.row(row / s.rows, row % s.rows)[i], (x[i] - mean) / deviation, 100 / deviation);
      }
    }
  return worst;
}

bool check(const Shape& s, bool in_place) {
  Case c = draw(s, in_place);
  std::vector<Rows> sources;
  for (Block& block : c.sources) sources.push_back(block.constant());
  if (in_place && s.sources > 0) sources[0] = c.sums.back().constant();
  const SumNorm op{sources.data(), s.sources, c.parts.data(), s.parts, s.images, s.rows, s.width, eps};
  const int64_t half = sum_norm_tasks(op) / 2;
  sum_norm(op, 0, half);  // as two threads would take them
  sum_norm(op, half, sum_norm_tasks(op));
  double error = worst_error(c);
  for (int64_t p = 0; p < s.parts; ++p)
    if (!gaps_are_untouched(s, c.sums[p]) || !gaps_are_untouched(s, c.normed[p])) error = poison;
  if (error <= 1e-6) return true;
  std::printf("%s, width %lld, %lld sources, %lld parts, in place %d: error %g\n", isa_name(current_isa()),
              static_cast<long long>(s.width), static_cast<long long>(s.sources), static_cast<long long>(s.parts),
              in_place, error);
  return false;
}

}  // namespace

int main() {
  bool right = true;
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (!set_isa(isa)) continue;
    for (int64_t width : {1, 7, 16, 33, 64, 100, 256, 271})
      for (int64_t sources : {0, 1, 2, 5, 30, 90})
        for (int64_t parts : {1, 2, 8})
          for (bool in_place : {false, true}) right = check({2, 3, width, sources, parts}, in_place) && right;
  }
  return right ? 0 : 1;
}
