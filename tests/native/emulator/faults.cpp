// Faults that the processor or the compiler's checks find: a signal, an address that is not aligned, a bad index.
#include <signal.h>
#include <ucontext.h>

#include "machine.h"

namespace emulator {
namespace {

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction before[4];
stack_t stack_before;
alignas(16) unsigned char signal_stack[64 * 1024], last_stack[64 * 1024];
int caught;

void report() {
  fault("block %u, thread %u: %s", current->block.x, current->index.x,
        caught == SIGFPE ? "division by zero" : "an address that is not its own (or its stack is used up)");
}

// Leaves the signal handler first, on a stack of its own: that of the thread may be used up.
void on_signal(int number, siginfo_t*, void* context) {
  caught = number;
#if defined(__x86_64__)
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  registers[REG_RIP] = reinterpret_cast<greg_t>(&report);
  registers[REG_RSP] = reinterpret_cast<greg_t>(last_stack + sizeof(last_stack) - 8);
#else
  (void)context;
  report();
#endif
}

}  // namespace

Guarded::Guarded() {
  stack_t stack{};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof(signal_stack);
  sigaltstack(&stack, &stack_before);
  struct sigaction action {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 4; ++i) sigaction(signals[i], &action, &before[i]);
}

Guarded::~Guarded() {
  for (int i = 0; i < 4; ++i) sigaction(signals[i], &before[i], nullptr);
  sigaltstack(&stack_before, nullptr);
}

}  // namespace emulator

// ---- what -fsanitize=alignment,bounds,integer-divide-by-zero calls ----

namespace {
struct Place {
  const char* file;
  uint32_t line, column;
};
[[noreturn]] void stop(const void* data, const char* what) {
  const auto& place = *static_cast<const Place*>(data);
  if (emulator::current == nullptr) __builtin_trap();
  emulator::fault("block %u, thread %u: %s at %s:%u", emulator::current->block.x, emulator::current->index.x, what,
                  place.file, place.line);
}
}  // namespace

extern "C" {
void __ubsan_handle_type_mismatch_v1(void* data, void*) { stop(data, "an address that is not aligned, or null,"); }
void __ubsan_handle_out_of_bounds(void* data, void*) { stop(data, "an index out of bounds"); }
void __ubsan_handle_divrem_overflow(void* data, void*, void*) { stop(data, "a division by zero"); }
}
