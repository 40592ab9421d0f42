// Who runs what: the tasks of all steps numbered through, and threads that walk the waves, taking tasks as they come.
//
// Nothing counts participants, so any number of threads may walk: a thread waits only for tasks that others have taken
// and are running. A late one finds the waves done and hurries through.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "kernels/cpu/program_machine.h"

namespace vitsparse::cpu {

// Floating-point operations that are not worth dividing: handing over to a waiting thread takes as long.
constexpr double worth_a_chunk = 2e5;

// Tasks [0, taken) are taken and `done` of them are done. A cache line each: both are written all the time.
struct Progress {
  alignas(64) std::atomic<int64_t> taken{0};
  alignas(64) std::atomic<int64_t> done{0};
};

inline void wait_until(const std::atomic<int64_t>& done, int64_t target) {
  for (int spins = 0; done.load(std::memory_order_acquire) < target; ++spins) {
    if (spins < 1000) {  // some 20 us; then somebody else may need the processor
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
}

class Schedule {
 public:
  // In this thread's memory, valid until it makes the next one.
  Schedule(Words program, const Machine& machine)
      : count_(format::header(program).steps), items_(workspace_of<Item>(Purpose::schedule, count_)) {
    int64_t tasks = 0;
    Item* item = items_;
    format::for_each_step(program, [&](const format::Step& step) {
      const Work work = machine.work(step);
      *item++ = {step, tasks, tasks + work.tasks, work.each, 0.};
      tasks += work.tasks;
      flops_ += work.each * static_cast<double>(work.tasks);
    });
    for (int64_t i = count_ - 2; i >= 0; --i) {
      const Item& next = items_[i + 1];
      if (next.step.wave == items_[i].step.wave) items_[i].flops_after = next.flops_from(next.begin);
    }
  }

  double flops() const { return flops_; }

  // Calls run(step, first task, last task) for what this thread takes, and lap(wave) after each wave. `threads`: how
  // many are expected. `run` must not throw.
  template <class Run, class Lap>
  void walk(Progress& progress, int64_t threads, const Run& run, const Lap& lap) const {
    const Item* next;
    for (const Item *first = items_, *end = items_ + count_; first != end; first = next) {
      for (next = first; next != end && next->step.wave == first->step.wave;) ++next;
      const Item* item = first;
      for (Tasks chunk; take(progress, threads, item, next, chunk);) {
        const int64_t tasks = chunk.end - chunk.begin;
        for (const Item* i = item; chunk.begin < chunk.end; chunk.begin = i->end, ++i)
          run(i->step, chunk.begin - i->begin, std::min(chunk.end, i->end) - i->begin);
        progress.done.fetch_add(tasks, std::memory_order_release);
      }
      wait_until(progress.done, next[-1].end);
      lap(first->step.wave);
    }
  }

 private:
  struct Tasks {
    int64_t begin, end;
  };
  struct Item {  // a step, and its tasks among those of the whole program
    format::Step step;
    int64_t begin, end;
    double each, flops_after;  // of one task; of the later steps of the wave
    double flops_from(int64_t task) const { return each * static_cast<double>(end - task) + flops_after; }
  };

  // Takes a chunk of the wave that ends before item `end`; `item` follows to where it begins. False: none is left.
  static bool take(Progress& progress, int64_t threads, const Item*& item, const Item* end, Tasks& chunk) {
    chunk.begin = progress.taken.load(std::memory_order_relaxed);
    do {
      if (chunk.begin >= end[-1].end) return false;
      while (item->end <= chunk.begin) ++item;
      chunk.end = end_of_chunk(item, end, chunk.begin, threads);
    } while (!progress.taken.compare_exchange_weak(chunk.begin, chunk.end, std::memory_order_relaxed));
    return true;
  }

  // Half of a thread's even share of what is left: large chunks first, for each weight to be read by one thread, and
  // small ones in the end, for the threads to finish together.
  static int64_t end_of_chunk(const Item* item, const Item* end, int64_t begin, int64_t threads) {
    double budget = std::max(worth_a_chunk, item->flops_from(begin) / static_cast<double>(2 * threads));
    for (; item != end && budget > 0; ++item) {
      const double left = static_cast<double>(item->end - begin), tasks = std::min(left, budget / item->each);
      begin += static_cast<int64_t>(std::ceil(tasks));
      budget -= tasks * item->each;
      if (begin < item->end) break;
    }
    return begin;
  }

  int64_t count_;
  Item* items_;
  double flops_ = 0;
};

}  // namespace vitsparse::cpu
