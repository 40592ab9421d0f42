#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {
namespace {

constexpr size_t stack_size = 256 * 1024, guard_size = 64 * 1024;  // pages are taken when touched

// The upper end of stack i. Tops lie at different places of a page: at the same place they would share cache lines' sets.
unsigned char* stack_top(int i) {
  static std::vector<unsigned char*> stacks;
  while (static_cast<int>(stacks.size()) <= i) {
    void* memory = mmap(nullptr, guard_size + stack_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    auto* const begin = static_cast<unsigned char*>(memory) + guard_size;
    mprotect(begin, stack_size, PROT_READ | PROT_WRITE);
    stacks.push_back(begin + stack_size);
  }
  return stacks[i] - 64 - 192 * static_cast<size_t>(i % 61);
}

}  // namespace

#if defined(__x86_64__)

// The registers that a function must keep go onto the stack; all others are the caller's business.
asm(R"(
.text
.type emulator_switch_stacks, @function
emulator_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stacks, .-emulator_switch_stacks
)");
extern "C" void emulator_switch_stacks(void** from, void* to);

void switch_fiber(Fiber& from, Fiber& to) { emulator_switch_stacks(&from.state, to.state); }

void prepare_fiber(Fiber& fiber, int i, void (*entry)()) {
  auto** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack_top(i)) & ~uintptr_t{15});
  *--top = nullptr;  // where entry() would return to: with it the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.state = top;
}

#else

void switch_fiber(Fiber& from, Fiber& to) {
  if (from.state == nullptr) from.state = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from.state), static_cast<ucontext_t*>(to.state));
}

void prepare_fiber(Fiber& fiber, int i, void (*entry)()) {
  if (fiber.state == nullptr) fiber.state = new ucontext_t;
  auto* const context = static_cast<ucontext_t*>(fiber.state);
  getcontext(context);
  context->uc_stack = {};
  context->uc_stack.ss_sp = stack_top(i) - stack_size / 2;
  context->uc_stack.ss_size = stack_size / 2;
  makecontext(context, entry, 0);
}

#endif

}  // namespace emulator
