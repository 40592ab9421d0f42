// sources: kernels/cpu/program.cpp kernels/common/program_validate.cpp kernels/common/program_waves.cpp kernels/cpu/workspace.cpp
//
// A program gives the same bits whatever threads the caller lends: all of them, fewer, late ones, or one that does
// everything; and what a kernel throws reaches the caller. The kernels are stand-ins: what they compute is cheap and
// tells whether a step began before the one before it had ended.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/cpu/cost.h"
#include "kernels/cpu/program.h"

using namespace vitsparse::cpu;

namespace {

constexpr int64_t rows = 64, width = 256, side = 8;
bool broken = false;

void each_index(int64_t n, Threads::Body body, void* state) {
  std::vector<std::thread> others;
  for (int64_t i = 1; i < n; ++i) others.emplace_back([=] { body(state, i, i + 1); });
  body(state, 0, 1);
  for (std::thread& other : others) other.join();
}
void half_as_many(int64_t n, Threads::Body body, void* state) {
  std::vector<std::thread> others;
  for (int64_t i = 2; i < n; i += 2) others.emplace_back([=] { body(state, i, i + 2 < n ? i + 2 : n); });
  body(state, 0, n < 2 ? n : 2);
  for (std::thread& other : others) other.join();
}
void one_alone(int64_t n, Threads::Body body, void* state) { body(state, 0, n); }
void others_late(int64_t n, Threads::Body body, void* state) {
  std::thread late([=] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    body(state, 1, n);
  });
  body(state, 0, 1);
  late.join();
}
void caller_late(int64_t n, Threads::Body body, void* state) {
  std::thread early([=] { body(state, 1, n); });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  body(state, 0, 1);
  early.join();
}

// Patches, then products and attentions in turn; every other attention shares its wave with a product.
std::vector<int64_t> words() {
  const int64_t patches = 0, a = 1, b = 2, c = 3, result = 4, layers = 12;
  std::vector<int64_t> steps;
  int64_t count = 0;
  const auto step = [&](int64_t op, int64_t wave, std::vector<int64_t> operands) {
    steps.insert(steps.end(), {op, wave, static_cast<int64_t>(operands.size())});
    steps.insert(steps.end(), operands.begin(), operands.end());
    ++count;
  };
  const auto linear = [&](int64_t wave, int64_t from, int64_t to, int64_t inputs) {
    step(2, wave, {from, 0, rows, 0, to, 0, rows, 0, inputs, width, 0, -1, 1, 0, 0});
  };
  step(1, 0, {patches, 0, rows, 0, 1});
  linear(1, patches, a, 1);
  for (int64_t i = 0; i < layers; ++i) {
    step(4, 2 * i + 2, {a, 0, rows, 0, a, 0, rows, 0, a, 0, rows, 0, b, 0, rows, 0, 4, width / 4, 0});
    if (i % 2) linear(2 * i + 2, a, c, width);
    linear(2 * i + 3, b, i + 1 == layers ? result : a, width);
  }
  std::vector<int64_t> all{0x76737067, 2, 5, count, rows + 3 * rows * width, 1, side, result};
  const int64_t slots[] = {0, 0, rows, 1, 0, rows, rows, width, 0, rows + rows * width, rows, width,
                           0, rows + 2 * rows * width, rows, width, 2, 0, rows, width};
  all.insert(all.end(), std::begin(slots), std::end(slots));
  all.insert(all.end(), steps.begin(), steps.end());
  return all;
}

}  // namespace

namespace vitsparse::cpu {

int64_t linear_tasks(const Linear& op) { return op.images * op.rows; }
void linear(const Linear& op, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task)
    for (int64_t c = 0; c < op.outputs; ++c)
      op.dst.row(task / op.rows, task % op.rows)[c] =
          op.src.row(task / op.rows, task % op.rows)[c % op.inputs] * .75f + .001f * static_cast<float>(c);
}
void attention(const Attention& op, int64_t begin, int64_t end) {
  if (broken) throw std::runtime_error("broken");
  for (int64_t task = begin; task < end; ++task)
    for (int64_t q = 0; q < op.queries; ++q)
      for (int64_t c = task % op.heads * op.head_dim, last = c + op.head_dim; c < last; ++c) {
        const int64_t image = task / op.heads;  // each row reads from all rows, so of all threads
        op.dst.row(image, q)[c] = op.q.row(image, q)[c] - op.k.row(image, c * 7 % op.keys)[c];
      }
}
void apply_pattern(const ApplyPattern&, int64_t, int64_t) {}
void sum_norm(const SumNorm&, int64_t, int64_t) {}

}  // namespace vitsparse::cpu

int main() {
  const std::vector<int64_t> program = words();
  const std::vector<float> weights(width * width);
  std::vector<float> images(3 * side * side);
  for (size_t i = 0; i < images.size(); ++i) images[i] = static_cast<float>(i * i % 101);
  const Words view{program.data(), static_cast<int64_t>(program.size())};
  const int64_t waves = vitsparse::format::validate_program(view, program_target, static_cast<int64_t>(weights.size())).waves;
  vitsparse::format::check_waves(view);
  const auto result = [&](int64_t batch, const Threads& threads) {
    std::vector<float> out(batch * rows * width, -1.f);
    std::vector<double> times(waves);
    run_program({view, weights.data(), images.data(), out.data(), batch, times.data()}, threads);
    return out;
  };
  int wrong = 0;
  for (const int64_t batch : {1, 3}) {
    const std::vector<float> exact = result(batch, {1, nullptr});
    for (const int64_t count : {2, 3, 4, 8})
      for (const auto lend : {each_index, half_as_many, one_alone, others_late, caller_late})
        for (int repeat = 0; repeat < 4; ++repeat) {
          wrong += result(batch, {count, lend}) != exact;
          broken = repeat == 2;
          try {
            wrong += broken + (result(batch, {count, lend}) != exact);
          } catch (const std::runtime_error& error) {
            wrong += !broken || std::strcmp(error.what(), "broken") != 0;
          }
          broken = false;
        }
  }
  if (wrong) std::printf("%d results differ from those of one thread\n", wrong);
  return wrong != 0;
}
