// Fibers: stacks that take turns on one OS thread.
#pragma once
#include <cstddef>

namespace emulator {

struct Fiber {
  void* state = nullptr;  // where it goes on
};

// Goes on with `to`; returns when someone switches back to `from`.
void switch_fiber(Fiber& from, Fiber& to);

// Sets up `fiber` so that the first switch to it calls entry() on stack number `i`; entry() never returns.
void prepare_fiber(Fiber& fiber, int i, void (*entry)());

}  // namespace emulator
