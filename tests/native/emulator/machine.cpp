// Whose turn it is. See emulator.h.
#include "machine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>

namespace emulator {

Thread* current = nullptr;
Index block_size, grid_size;
Machine machine;

namespace {

std::string fault_text;

void progress() { machine.vain_rounds = 0; }  // something that others may wait for has happened

uint32_t random_number() {  // xorshift
  auto& x = machine.random;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  return static_cast<uint32_t>(x >> 32);
}

Lane& self() { return *static_cast<Lane*>(current); }

int random_bit_of(uint32_t set) {
  const int turn = random_number() & 31;
  const uint32_t turned = set >> turn | set << ((32 - turn) & 31);
  return (__builtin_ctz(turned) + turn) & 31;
}

// A warp in which a lane can go on; null: there is none.
Warp* find_ready_warp() {
  auto& warps = machine.warps;
  const size_t count = warps.size(), first = random_number() % count;
  for (size_t i = 0; i < count; ++i) {
    Warp& warp = warps[first + i < count ? first + i : first + i - count];
    if (warp.ready) return &warp;
  }
  return nullptr;
}

// When nobody can go on, those who wait for other blocks look again: in vain for so many times means forever.
constexpr int patience = 1000;

bool wake_the_waiting() {
  if (++machine.vain_rounds > patience) return false;
  bool any = false;
  for (Warp& warp : machine.warps) {
    any |= warp.polling != 0;
    warp.ready |= warp.polling;
    warp.polling = 0;
  }
  return any;
}

void describe(const Warp& warp, std::string& text) {
  for (uint32_t left = ~warp.ended; left;) {
    const Lane& first = warp.lanes[__builtin_ctz(left)];
    uint32_t same = 0;
    for (int i = 0; i < 32; ++i)
      if (left >> i & 1 && warp.lanes[i].site == first.site && warp.lanes[i].name == first.name) same |= 1u << i;
    left &= ~same;
    char line[300];
    std::snprintf(line, sizeof(line), "\n  block %u, warp %d, lanes %08x: %s at %s:%d", first.block.x, warp.number, same,
                  first.name, first.site.file, first.site.line);
    text += line;
  }
  if (warp.ended && ~warp.ended) {
    char line[100];
    std::snprintf(line, sizeof(line), "\n  block %u, warp %d, lanes %08x: ended", warp.lanes[0].block.x, warp.number,
                  warp.ended);
    text += line;
  }
}

[[noreturn]] void nobody_can_go_on() {
  std::string text = "deadlock: no thread can go on";
  for (const Warp& warp : machine.warps)
    if (text.size() < 3000) describe(warp, text);
  fault("%s", text.c_str());
}

// Gives the turn to a thread that can go on: most often in the same warp, in the launch's own mood.
void pass_on() {
  stop_if_late();
  Lane* const me = &self();
  Warp* warp = me->warp;
  if (!warp->ready || random_number() % 16 < machine.restlessness) {
    while ((warp = find_ready_warp()) == nullptr)
      if (!wake_the_waiting()) {
        if (machine.living == 0) switch_fiber(me->fiber, machine.launcher);
        nobody_can_go_on();
      }
  }
  Lane& next = warp->lanes[random_bit_of(warp->ready)];
  if (&next == me) return;
  current = &next;
  switch_fiber(me->fiber, next.fiber);
}

void wait_at(const char* name, Site site) {
  Lane& me = self();
  me.name = name;
  me.site = site;
  me.warp->ready &= ~me.bit;
}

void release_barrier(Block& block) {
  const Lane* first = nullptr;
  for (int w = 0; w < block.warps; ++w) {
    Warp& warp = block.warp[w];
    for (uint32_t left = warp.at_barrier; left; left &= left - 1) {
      const Lane& lane = warp.lanes[__builtin_ctz(left)];
      if (first == nullptr) first = &lane;
      if (!(lane.site == first->site))
        fault("block %u: thread %u waits at the barrier of %s:%d and thread %u at that of %s:%d", lane.block.x,
              first->index.x, first->site.file, first->site.line, lane.index.x, lane.site.file, lane.site.line);
    }
  }
  for (int w = 0; w < block.warps; ++w) {
    block.warp[w].ready |= block.warp[w].at_barrier;
    block.warp[w].at_barrier = 0;
  }
  block.at_barrier = 0;
  block.epoch = next_epoch();
  std::swap(block.known, block.learnt);  // what one thread learnt, now all know; knowledge only grows
  block.learnt = block.known;
  progress();
}

void thread_main() {
  machine.launch->body(machine.launch->argument);
  Lane& me = self();
  if (!me.copies.empty()) fault("block %u, thread %u ended before its copies to shared memory did (copy_16 at %s:%d)",
                                me.block.x, me.index.x, me.copies[0].site.file, me.copies[0].site.line);
  if (!me.open_sums.empty()) fault("block %u, thread %u ended before its products", me.block.x, me.index.x);
  if (me.product_count && me.product_count != me.warp->block->products[me.index.x / 128].size())
    fault("block %u, thread %u took part in %zu products of its warpgroup of %zu", me.block.x, me.index.x,
          me.product_count, me.warp->block->products[me.index.x / 128].size());
  wait_at("ended", {"", 0});
  me.warp->ended |= me.bit;
  --machine.living;
  Block& block = *me.warp->block;
  if (--block.living == block.at_barrier && block.living) release_barrier(block);
  progress();
  pass_on();
  __builtin_unreachable();
}

}  // namespace

void together(Operation operation, const char* name, void* operand, Site site) {
  Lane& me = self();
  Warp& warp = *me.warp;
  wait_at(name, site);
  me.operation = operation;
  warp.operands[me.index.x % 32] = operand;
  warp.arrived |= me.bit;
  if (warp.arrived == ~0u) {
    for (const Lane& lane : warp.lanes) {
      if (lane.operation == operation && lane.site == site) continue;
      std::string text = "the lanes of a warp met at different instructions";
      describe(warp, text);
      fault("%s", text.c_str());
    }
    operation(warp.operands);
    warp.epoch += operation == meet;
    warp.arrived = 0;
    warp.ready = ~0u;
    progress();
  }
  pass_on();
}

void barrier(Site site) {
  wait_at("__syncthreads", site);
  Warp& warp = *self().warp;
  Block& block = *warp.block;
  warp.at_barrier |= self().bit;
  if (++block.at_barrier == block.living) release_barrier(block);
  pass_on();
}

void add_release(uint32_t* counter, uint32_t value) {
  release(counter);
  *counter += value;
  progress();
}

uint32_t load_acquire(const uint32_t* counter, Site site) {
  wait_at("load_acquire", site);
  self().warp->polling |= self().bit;
  pass_on();
  acquire(counter);
  return *counter;
}

const char* last_fault() { return fault_text.c_str(); }

void fault(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char text[4000];
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  fault_text = text;
  machine.failed = true;
  Fiber abandoned = self().fiber;
  switch_fiber(abandoned, machine.launcher);
  __builtin_unreachable();
}

// ---- a launch ----

namespace {

void begin_block(Block& block, unsigned number, int slot) {
  const int threads = machine.launch->threads;
  block.memory.fill(machine.launch->shared_bytes);
  block.living = threads;
  block.at_barrier = 0;
  block.number = number;
  block.first_epoch = block.epoch = next_epoch();
  block.touched.resize(block.memory.size / 2 + 1);
  block.known.assign(machine.launch->cooperative ? machine.launch->blocks : 0, 0);
  block.learnt = block.known;
  block.products.clear();
  for (int t = 0; t < threads; ++t) {
    Warp& warp = block.warp[t / 32];
    Lane& lane = warp.lanes[t % 32];
    if (t % 32 == 0) warp.ready = ~0u, warp.arrived = warp.at_barrier = warp.polling = warp.ended = warp.epoch = 0;
    lane.index = {static_cast<unsigned>(t), 0, 0};
    lane.block = {number, 0, 0};
    lane.copies.clear();
    lane.groups = 0;
    lane.products.clear();
    lane.open_sums.clear();
    lane.product_count = lane.fences = lane.acquired = 0;
    prepare_fiber(lane.fiber, slot * threads + t, thread_main);
  }
  machine.living += threads;
}

void lay_out(int blocks, int warps) {
  machine.blocks.resize(blocks);
  machine.warps.resize(static_cast<size_t>(blocks) * warps);
  for (int b = 0; b < blocks; ++b) {
    machine.blocks[b].warps = warps;
    machine.blocks[b].warp = &machine.warps[static_cast<size_t>(b) * warps];
    for (int w = 0; w < warps; ++w) {
      Warp& warp = machine.blocks[b].warp[w];
      warp.block = &machine.blocks[b];
      warp.number = w;
      for (int i = 0; i < 32; ++i) warp.lanes[i].warp = &warp, warp.lanes[i].bit = 1u << i;
    }
  }
}

// Runs the blocks that were begun until all their threads have ended.
bool run_threads() {
  Lane& first = machine.warps[random_number() % machine.warps.size()].lanes[random_number() % 32];
  current = &first;
  switch_fiber(machine.launcher, first.fiber);
  current = nullptr;
  return !machine.failed;
}

bool refused(const Launch& launch, const Device& device) {
  const int most = launch.shared_bytes > 0 ? device.shared_limit / launch.shared_bytes : 16;
  const int at_once = device.multiprocessors * std::max(1, std::min(most, 1024 / std::max(1, launch.threads)));
  char text[200] = "";
  if (launch.threads < 32 || launch.threads > 1024 || launch.threads % 32)
    std::snprintf(text, sizeof(text), "a launch of %d threads per block", launch.threads);
  else if (launch.blocks < 0 || launch.shared_bytes < 0 ||
           launch.shared_bytes > std::min<int>(device.shared_limit, Memory::most))
    std::snprintf(text, sizeof(text), "a launch of %d blocks with %d bytes of shared memory, where %d is the limit",
                  launch.blocks, launch.shared_bytes, device.shared_limit);
  else if (launch.cooperative && launch.blocks > at_once)
    std::snprintf(text, sizeof(text), "a cooperative launch of %d blocks, where %d run at once", launch.blocks, at_once);
  fault_text = text;
  return !fault_text.empty();
}

}  // namespace

bool run(const Launch& launch, const Device& device) {
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  if (refused(launch, device)) return false;
  machine.launch = &launch;
  machine.random = (device.seed + 1) * 0x9e3779b97f4a7c15u;
  machine.failed = machine.late = false;
  machine.first_epoch = next_epoch();
  forget_global();
  machine.living = machine.vain_rounds = 0;
  constexpr uint32_t moods[] = {2, 0, 16};  // a warp goes as far as it can; or leaves at every instruction
  machine.restlessness = moods[device.seed % 3];
  block_size = {static_cast<unsigned>(launch.threads), 1, 1};
  grid_size = {static_cast<unsigned>(launch.blocks), 1, 1};
  const int at_once = launch.cooperative ? launch.blocks : 1;
  lay_out(at_once, launch.threads / 32);
  const Guarded guarded(device.seconds);
  for (int begun = 0; begun < launch.blocks; begun += at_once) {
    // Blocks come in an order that is neither that of their numbers nor the same for each seed.
    for (int b = 0; b < at_once; ++b) {
      const unsigned place = device.seed % 2 ? launch.blocks - 1 - (begun + b) : begun + b;
      begin_block(machine.blocks[b], place, b);
    }
    if (!run_threads()) return false;
  }
  return true;
}

}  // namespace emulator
