// Threads as fibers, the barriers between them, and the order they run in.
#include <algorithm>

#include "state.h"

cuda_on_cpu::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

Machine machine;

Place here() { return {machine.launch->kernel.c_str(), blockIdx, machine.current}; }

int lane_id() { return int(machine.current % kWarp); }

static void wait(State state, int site, Collective run, void* argument, bool needs_all_lanes) {
  Thread& thread = machine.threads[machine.current];
  thread.state = state;
  thread.site = site;
  thread.run = run;
  thread.argument = argument;
  thread.needs_all_lanes = needs_all_lanes;
  cuda_on_cpu_switch(&thread.stack_pointer, machine.scheduler);
}
void block_barrier(int site) { wait(State::at_block_barrier, site, nullptr, nullptr, false); }
void warp_barrier(int site) { wait(State::at_warp_barrier, site, nullptr, nullptr, false); }
void warp_collective(int site, Collective run, void* argument, bool needs_all_lanes) {
  wait(State::at_warp_barrier, site, run, argument, needs_all_lanes);
}

static void fiber_main() {
  machine.launch->entry(machine.launch->arguments.data());
  Thread& thread = machine.threads[machine.current];
  thread.state = State::exited;
  cuda_on_cpu_switch(&thread.stack_pointer, machine.scheduler);
  abort();
}

static void become(uint32_t id) {
  machine.current = id;
  threadIdx = machine.threads[id].index;
}

// Lets a warp go on when all its lanes wait for one another. Returns whether it did.
static bool release_warp(uint32_t warp) {
  const uint32_t first = warp * kWarp, last = std::min<uint32_t>(first + kWarp, uint32_t(machine.threads.size()));
  void* arguments[kWarp] = {};
  int waiting = -1, present = 0;
  bool mixed = false;
  for (uint32_t id = first; id < last; ++id) {
    const Thread& thread = machine.threads[id];
    if (thread.state == State::exited) continue;
    if (thread.state != State::at_warp_barrier) return false;
    if (waiting >= 0 && thread.site != machine.threads[waiting].site) mixed = true;
    if (waiting < 0) waiting = int(id);
    arguments[id - first] = thread.argument;
    ++present;
  }
  if (waiting < 0) return false;
  const Thread& leader = machine.threads[waiting];
  become(uint32_t(waiting));
  if (mixed) {
    report_warp_fault("lanes of one warp wait at different warp-level calls");
  } else if (leader.run && leader.needs_all_lanes && present != kWarp) {
    report_warp_fault("a warp-level matrix call without all 32 lanes");
  } else if (leader.run) {
    machine.lane_flag = kAnyLane;
    leader.run(arguments);
    machine.lane_flag = 0;
  } else {
    machine.warp_tick[warp] = ++machine.tick;
  }
  for (uint32_t id = first; id < last; ++id) {
    if (machine.threads[id].state == State::at_warp_barrier) machine.threads[id].state = State::ready;
  }
  return true;
}

// Called when nobody can run. Returns false when all threads have exited.
static bool release_block() {
  int waiting = -1, exited = -1, odd = -1;
  for (uint32_t id = 0; id < machine.threads.size(); ++id) {
    const Thread& thread = machine.threads[id];
    if (thread.state == State::exited) {
      exited = int(id);
    } else if (waiting < 0) {
      waiting = int(id);
    } else if (thread.state != machine.threads[waiting].state || thread.site != machine.threads[waiting].site) {
      odd = int(id);
    }
  }
  if (waiting < 0) return false;
  become(uint32_t(waiting));
  const int site = machine.threads[waiting].site;
  if (odd >= 0) {
    report({"barrier-divergence", here(), "", -1, odd,
            "threads wait at barrier " + std::to_string(site) + " and at barrier " + std::to_string(machine.threads[odd].site)});
  } else if (exited >= 0) {
    report({"barrier-divergence", here(), "", -1, exited,
            "threads wait at barrier " + std::to_string(site) + " that others have exited without"});
  }
  machine.block_tick = ++machine.tick;
  for (Thread& thread : machine.threads) {
    if (thread.state != State::exited) thread.state = State::ready;
  }
  return true;
}

template <class T>
static void arrange(std::vector<T>& order) {
  if (machine.order != Order::shuffled) return;
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[machine.generator.next() % i]);
}
static std::vector<uint32_t> sequence(size_t count) {
  std::vector<uint32_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = uint32_t(machine.order == Order::reverse ? count - 1 - i : i);
  return order;
}

static void run_block(std::vector<uint32_t>& order) {
  machine.block_start = machine.block_tick = ++machine.tick;
  std::fill(machine.warp_tick.begin(), machine.warp_tick.end(), machine.tick);
  for (uint32_t id = 0; id < machine.threads.size(); ++id) {
    machine.threads[id].state = State::ready;
    machine.threads[id].copies.clear();
    machine.threads[id].group = 0;
    if (machine.launch->fibers) machine.threads[id].stack_pointer = machine.stacks[id].start(fiber_main);
  }
  do {
    for (bool progress = true; progress;) {
      progress = false;
      arrange(order);
      for (uint32_t id : order) {
        Thread& thread = machine.threads[id];
        if (thread.state != State::ready) continue;
        become(id);
        if (machine.launch->fibers) {
          cuda_on_cpu_switch(&machine.scheduler, thread.stack_pointer);
        } else {
          machine.launch->entry(machine.launch->arguments.data());
          thread.state = State::exited;
        }
      }
      if (!machine.launch->fibers) return;
      for (uint32_t warp = 0; warp < machine.warp_tick.size(); ++warp) progress |= release_warp(warp);
    }
  } while (release_block());
}

// What the driver of a GPU refuses. Dynamic shared memory is bounded by the largest GPU's; a target's own is smaller.
static bool launchable(const Launch& launch) {
  const Dim3 &grid = launch.grid, &block = launch.block;
  const char* refused = nullptr;
  if (threads_of(block) == 0 || threads_of(grid) == 0) refused = "a block or a grid is empty";
  if (threads_of(block) > 1024 || block.z > 64) refused = "a block has more than 1024 threads, or more than 64 along z";
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) refused = "a grid is too large: y and z end at 65535";
  if (launch.dynamic_shared > (227 << 10)) refused = "more than 227 KiB of dynamic shared memory";
  if (refused) report({"launch", {launch.kernel.c_str(), {}, 0}, "", -1, -1, refused});
  return !refused;
}

static void check_static_shared() {
  uint64_t bytes = 0;
  for (const Buffer& buffer : machine.shared) bytes += buffer.name ? buffer.bytes : 0;
  if (bytes <= (48 << 10)) return;
  report({"launch", here(), "", -1, -1, "more than 48 KiB of static shared memory: " + std::to_string(bytes) + " bytes"});
}

void run(const Launch& launch) {
  if (!launchable(launch)) return;
  machine.launch = &launch;
  blockDim = launch.block;
  gridDim = launch.grid;
  const size_t count = threads_of(launch.block);
  machine.threads.assign(count, Thread{});
  machine.warp_tick.assign((count + kWarp - 1) / kWarp, 0);
  for (size_t id = 0; id < count; ++id) {
    const unsigned i = unsigned(id);
    machine.threads[id].index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
  }
  while (launch.fibers && machine.stacks.size() < count) machine.stacks.emplace_back();
  for (Buffer* buffer : launch.arguments) {
    free(buffer->writers);
    buffer->writers = nullptr;
  }
  for (Buffer& buffer : machine.shared) buffer.name = nullptr;
  machine.dynamic.name = nullptr;
  std::vector<uint32_t> blocks = sequence(threads_of(launch.grid)), order = sequence(count);
  arrange(blocks);
  for (uint32_t block : blocks) {
    machine.block = block;
    blockIdx = {block % launch.grid.x, block / launch.grid.x % launch.grid.y, block / launch.grid.x / launch.grid.y};
    run_block(order);
  }
  check_static_shared();
}

}  // namespace cuda_on_cpu
