// Who runs what when several threads run a program together.
//
// The tasks of a wave are divided into as many ranges as there are threads, and each thread begins with its own: the
// same rows of one step after the other, which lie in its cache. Whoever is done helps the others where that is worth
// it. Nothing counts participants: a thread that waits for long takes what is left, whoever it belongs to, and else
// waits only for tasks that others have taken and are running. So any number of threads may come, at any time.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "kernels/cpu/program_machine.h"

namespace vitsparse::cpu {

// Floating-point operations below which a chunk is not worth dividing, and a rest not worth fetching its rows from the
// cache of the thread that it belongs to.
constexpr double worth_a_chunk = 1e5, worth_helping = 1e6;
// What a wave costs more when it is shared: waiting for each other, and rows that change caches.
constexpr double cost_of_sharing = 2e5;
// Turns of waiting (some 25 ns each): after `patience` a thread takes whatever is left, after `insistence` it lets
// others have the processor.
constexpr int patience = 100, insistence = 1000;
// Slices that a step's rows are cut into, at most: each slice reads all weights. And rows of a slice, at least.
constexpr int64_t most_slices = 4, fewest_rows = 4;

// What threads tell each other; a cache line each, because all are written all the time.
struct alignas(64) Taken {
  std::atomic<int64_t> value;  // wave * 2^32 + tasks of the range that are taken; an earlier wave: none
};
struct alignas(64) Done {
  std::atomic<int64_t> tasks{0};  // of all waves
};

// Whether `threads` threads together are faster than one that keeps everything in its cache.
inline bool worth_sharing(Words program, const Machine& machine, int64_t threads) {
  double flops = 0, cost = worth_a_thread;
  int64_t wave = -1;
  format::for_each_step(program, [&](const format::Step& step) {
    flops += machine.flops_of(step);
    cost += step.wave != wave ? cost_of_sharing : 0.;
    wave = step.wave;
  });
  return flops * (1. - 1. / static_cast<double>(threads)) > cost;
}

class Schedule {
 public:
  // For `threads` threads; in this thread's memory, valid until it makes the next one.
  Schedule(Words program, const Machine& machine, int64_t threads)
      : count_(format::header(program).steps),
        ranges_(threads),
        items_(workspace_of<Item>(Purpose::schedule, count_)),
        taken_(workspace_of<Taken>(Purpose::counters, threads)) {
    for (int64_t r = 0; r < ranges_; ++r) taken_[r].value.store(0, std::memory_order_relaxed);
    int64_t slices = std::min(most_slices, threads);
    while (threads % slices != 0) --slices;
    Item* item = items_;
    format::for_each_step(program, [&](const format::Step& step) {
      *item = item_of(step, machine, slices);
      tasks_ += item->tasks();
      item->end = tasks_;
      ++item;
    });
  }

  // Runs what falls to the owner of ranges [first, last), and calls lap(wave) after each wave. run(step, slice, begin,
  // end) must not throw.
  template <class Run, class Lap>
  void walk(Done& done, int64_t first, int64_t last, const Run& run, const Lap& lap) const {
    for (Wave wave{items_, items_}; wave.begin != items_ + count_; wave.begin = wave.end) {
      while (wave.end != items_ + count_ && wave.end->step.wave == wave.begin->step.wave) ++wave.end;
      for (int64_t r = first; r < last; ++r) take_all(done, wave, r, 0., run);
      for (int64_t i = last - first; i < ranges_; ++i) take_all(done, wave, (first + i) % ranges_, worth_helping, run);
      const int64_t target = wave.end[-1].end;
      for (int turns = 0; done.tasks.load(std::memory_order_acquire) < target; ++turns) {
        pause(turns);
        if (turns == patience)
          for (int64_t r = 0; r < ranges_; ++r) take_all(done, wave, r, 0., run);
      }
      lap(wave.begin->step.wave);
    }
  }

 private:
  struct Item {
    format::Step step;
    int64_t slices, rows, tasks_of_large, tasks_of_small;  // slices of rows / slices rows are small, the first larger
    int64_t end;                                           // tasks of all steps up to and with this one
    double each;
    int64_t large() const { return slices == 1 ? 1 : rows % slices; }
    int64_t tasks_of(int64_t slice) const { return slice < large() ? tasks_of_large : tasks_of_small; }
    int64_t tasks() const { return large() * tasks_of_large + (slices - large()) * tasks_of_small; }
    Slice slice(int64_t s) const { return {s * (rows / slices) + std::min(s, large()), rows / slices + (s < large())}; }
  };
  struct Wave {
    const Item *begin, *end;
  };

  static Item item_of(const format::Step& step, const Machine& machine, int64_t slices) {
    const int64_t rows = machine.rows(step);
    if (slices == 1 || rows < slices * fewest_rows) {
      const Work whole = machine.work(step);
      return {step, 1, rows, whole.tasks, 0, 0, whole.each};
    }
    const Slice large{0, rows / slices + 1}, small{0, rows / slices};
    const Work of_small = machine.work(step, &small);
    const Work of_large = rows % slices ? machine.work(step, &large) : of_small;
    return {step, slices, rows, of_large.tasks, of_small.tasks, 0, of_small.each};
  }

  // Tasks [begin, end) of a slice that belong to a range; what is too small to be divided belongs to the first.
  struct Part {
    int64_t slice, begin, end;
  };
  Part part_of(const Item& item, int64_t range) const {
    const int64_t slice = range % item.slices, parts = ranges_ / item.slices, part = range / item.slices;
    const int64_t tasks = item.tasks_of(slice);
    if (item.each * static_cast<double>(tasks) < worth_a_chunk) return {slice, 0, part == 0 ? tasks : 0};
    return {slice, tasks * part / parts, tasks * (part + 1) / parts};
  }

  // Runs what is left of a range, in chunks, as long as that is at least `worth` operations.
  template <class Run>
  void take_all(Done& done, const Wave& wave, int64_t range, double worth, const Run& run) const {
    double flops = 0;
    int64_t tasks = 0;
    for (const Item* item = wave.begin; item != wave.end; ++item) {
      const Part part = part_of(*item, range);
      tasks += part.end - part.begin;
      flops += item->each * static_cast<double>(part.end - part.begin);
    }
    const double each = flops / static_cast<double>(std::max<int64_t>(tasks, 1));
    const auto least = static_cast<int64_t>(std::min(worth_a_chunk / std::max(each, 1.), 1e9)) + 1;
    const int64_t base = wave.begin->step.wave << 32;
    std::atomic<int64_t>& taken = taken_[range].value;
    for (int64_t seen = taken.load(std::memory_order_relaxed);;) {
      const int64_t begin = std::max(seen, base) - base, left = tasks - begin;
      if (left <= 0 || each * static_cast<double>(left) < worth) return;
      const int64_t end = begin + std::min(left, std::max(least, (left + 1) / 2));
      if (!taken.compare_exchange_weak(seen, base + end, std::memory_order_relaxed)) continue;
      run_chunk(wave, range, begin, end, run);
      done.tasks.fetch_add(end - begin, std::memory_order_release);
      seen = base + end;
    }
  }
  template <class Run>
  void run_chunk(const Wave& wave, int64_t range, int64_t begin, int64_t end, const Run& run) const {
    int64_t before = 0;
    for (const Item* item = wave.begin; item != wave.end && before < end; ++item) {
      const Part part = part_of(*item, range);
      const int64_t first = std::max(begin - before, int64_t{0}), last = std::min(end - before, part.end - part.begin);
      if (first < last) {
        const Slice slice = item->slice(part.slice);
        run(item->step, item->slices == 1 ? nullptr : &slice, part.begin + first, part.begin + last);
      }
      before += part.end - part.begin;
    }
  }

  static void pause(int turns) {
    if (turns >= insistence) return std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  int64_t count_, ranges_;
  Item* items_;
  Taken* taken_;
  int64_t tasks_ = 0;
};

}  // namespace vitsparse::cpu
