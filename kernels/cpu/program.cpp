#include "kernels/cpu/program.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "kernels/common/program_refuse.h"
#include "kernels/cpu/program_machine.h"
#include "kernels/cpu/program_schedule.h"
#include "kernels/cpu/workspace.h"

namespace vitsparse::cpu {
namespace {

// Images are run together until a product has about this many rows: enough to reuse each weight that was fetched, few
// enough for the activations to stay in the L2 cache.
constexpr int64_t rows_together = 128;

// Adds to waves[w] the microseconds since the last call; does nothing without `waves`.
class Stopwatch {
 public:
  explicit Stopwatch(double* waves) : waves_(waves) {
    if (waves_) last_ = Clock::now();
  }
  void lap(int64_t wave) {
    if (!waves_) return;
    const Clock::time_point now = Clock::now();
    waves_[wave] += std::chrono::duration<double, std::micro>(now - last_).count();
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  double* waves_;
  Clock::time_point last_;
};

// The first exception of several threads; each goes on after it, so that none waits in vain for another.
class Failure {
 public:
  template <class Body>
  void guard(const Body& body) noexcept {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      body();
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }
  void rethrow() const {  // when all threads have left
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

// Lends a body to all threads at once: body(first, last), where each of [0, threads.count) falls to one thread that
// comes, and 0 to the calling one.
template <class Body>
void on_all_threads(const Threads& threads, const Body& body) {
  threads.parallel_for(threads.count, [](void* b, int64_t first, int64_t last) {
    (*static_cast<const Body*>(b))(first, last);
  }, const_cast<Body*>(&body));
}

float* arena_for(Words program, int64_t images) {
  const int64_t floats = format::header(program).arena_numbers;
  try {
    return workspace(Purpose::program, floats * images);
  } catch (const std::bad_alloc&) {
    format::refuse(-1, {}, "arena numbers per image", "what memory holds for " + std::to_string(images) + " images", floats);
  }
}

// Images [begin, end) on this thread alone.
void run_group(const ProgramRun& run, int64_t begin, int64_t end, double* waves) {
  Machine machine(run, begin, end - begin, arena_for(run.program, end - begin));
  Stopwatch watch(waves);
  int64_t wave = 0;
  format::for_each_step(run.program, [&](const format::Step& step) {
    if (step.wave != wave) watch.lap(wave);
    wave = step.wave;
    machine.run(step);
  });
  if (format::header(run.program).steps > 0) watch.lap(wave);
}

int64_t images_together(Words program) {
  int64_t rows = 1;
  for (int64_t i = 0; i < format::header(program).slots; ++i) rows = std::max(rows, format::slot(program, i).rows);
  return std::max<int64_t>(1, rows_together / rows);
}

// Images [begin, end), a few at a time in groups of nearly equal size, the larger ones first, so that threads end
// together; one that is done with a group takes the next.
void run_groups(const ProgramRun& run, int64_t begin, int64_t end, const Threads& threads) {
  const int64_t images = end - begin, together = images_together(run.program);
  const int64_t rounds = (images + together * threads.count - 1) / (together * threads.count);
  const int64_t groups = std::min(images, rounds * threads.count);
  const auto first_of = [=](int64_t g) { return begin + images / groups * g + std::min(g, images % groups); };
  std::atomic<int64_t> next{0};
  std::mutex adding;
  Failure failure;
  const auto body = [&](int64_t, int64_t) {
    failure.guard([&] {
      std::vector<double> waves(run.waves ? format::wave_count(run.program) : 0);  // empty but for a profile
      double* times = waves.empty() ? nullptr : waves.data();
      for (int64_t g; (g = next.fetch_add(1, std::memory_order_relaxed)) < groups;)
        run_group(run, first_of(g), first_of(g + 1), times);
      const std::lock_guard<std::mutex> lock(adding);
      for (size_t w = 0; w < waves.size(); ++w) run.waves[w] += waves[w] / static_cast<double>(threads.count);
    });
  };
  if (threads.count == 1 || groups == 1) body(0, 1);
  else on_all_threads(threads, body);
  failure.rethrow();
}

// Images [begin, end) at once, with all threads inside each wave. False, and nothing done, where that is not worth it.
bool run_shared(const ProgramRun& run, int64_t begin, int64_t end, const Threads& threads) {
  float* arena = arena_for(run.program, end - begin);
  const Machine machine(run, begin, end - begin, arena);
  if (!worth_sharing(run.program, machine, threads.count)) return false;
  const Schedule schedule(run.program, machine, threads.count);
  Done done;
  Failure failure;
  on_all_threads(threads, [&](int64_t first, int64_t last) {
    Machine own = machine;
    Stopwatch watch(first ? nullptr : run.waves);
    const auto run_chunk = [&](const format::Step& step, const Slice* slice, int64_t from, int64_t to) {
      failure.guard([&] { own.run(step, slice, from, to); });
    };
    schedule.walk(done, first, last, run_chunk, [&](int64_t wave) { watch.lap(wave); });
  });
  failure.rethrow();
  return true;
}

}  // namespace

// Images that fill the threads evenly go to them in groups, each thread running the whole program without waiting for
// the others. What is left of a small batch is run together where that pays; it is little of a large one.
void run_program(const ProgramRun& run, const Threads& threads) {
  const int64_t left = run.batch < 8 * threads.count ? run.batch % threads.count : 0;
  const bool shared = left > 0 && run_shared(run, run.batch - left, run.batch, threads);
  const int64_t apart = shared ? run.batch - left : run.batch;
  if (apart > 0) run_groups(run, 0, apart, threads);
}

}  // namespace vitsparse::cpu
