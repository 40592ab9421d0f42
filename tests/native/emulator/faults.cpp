// Faults that the processor or the compiler's checks find: a signal, an address that is not aligned, a bad index.
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "machine.h"

namespace emulator {
namespace {

const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGRTMAX - 1};  // the last: time is up
constexpr int count = 5;
struct sigaction before[count];
stack_t stack_before;
timer_t timer;
int seconds;
alignas(16) unsigned char signal_stack[64 * 1024], last_stack[64 * 1024];
volatile int caught;

void report() {
  if (caught == signals[4]) fault_of_late();
  fault("block %u, thread %u: %s", current->block.x, current->index.x,
        caught == SIGFPE ? "division by zero" : "an address that is not its own (or its stack is used up)");
}

// Leaves the signal handler first, on a stack of its own: that of the thread may be used up. When time is up, the thread
// stops at its next access to memory, and if there is none until the timer rings again, at once.
void on_signal(int number, siginfo_t*, void* context) {
  if (number == signals[4] && !machine.late) {
    machine.late = true;
    return;
  }
  if (current == nullptr) {  // no thread of the device: not ours
    for (int i = 0; i < count; ++i) sigaction(signals[i], &before[i], nullptr);
    return;
  }
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

// Rings after `seconds` of this OS thread's own time, and then each second.
void start_timer() {
  struct sigevent event {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = signals[4];
  event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
  timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
  const itimerspec limit{{1, 0}, {seconds, 0}};
  timer_settime(timer, 0, &limit, nullptr);
}

}  // namespace

void fault_of_late() {
  machine.late = false;
  fault("block %u, thread %u: the launch took longer than %d s", current->block.x, current->index.x, seconds);
}

Guarded::Guarded(int limit) {
  seconds = limit;
  stack_t stack{};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof(signal_stack);
  sigaltstack(&stack, &stack_before);
  struct sigaction action {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < count; ++i) sigaction(signals[i], &action, &before[i]);
  start_timer();
}

Guarded::~Guarded() {
  timer_delete(timer);
  for (int i = 0; i < count; ++i) sigaction(signals[i], &before[i], nullptr);
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
