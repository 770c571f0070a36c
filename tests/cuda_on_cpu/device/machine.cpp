// Runs launches of one compiled library, thread after thread, and prints what is wrong with them.
// usage: machine LIBRARY REQUEST. A request's lines are written by execute.py; a fault is one line of tabs on stdout.
#include "machine.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "faults.h"
#include "fiber.h"

cuda_on_cpu::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

using Kernel = void (*)(Buffer* const* arguments);

// A granule was accessed at `tick` by a thread, or by an unspecified lane of that thread's warp (kAnyLane).
constexpr uint16_t kAnyLane = 0x8000;
struct Touch {
  uint32_t tick;
  uint16_t thread;
};
// Two reads of different warps (or the only ones) suffice: a write conflicts with one of them or with none at all.
struct Shadow {
  Touch write, read, other_read;
};

enum class State : uint8_t { ready, at_block_barrier, at_warp_barrier, exited };
struct Thread {
  State state;
  int site;
  Collective run;
  void* argument;
  bool needs_all_lanes;
  void* stack_pointer;
  Dim3 index;
};

struct Generator {  // splitmix64
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
};

enum class Order { forward, reverse, shuffled };

struct Launch {
  std::string kernel;
  Kernel entry;
  Dim3 grid, block;
  uint64_t dynamic_shared;
  bool fibers;
  uint32_t granule;  // bytes of the smallest element in shared memory
  std::vector<Buffer*> arguments;
};

constexpr int kMaxSharedArrays = 64, kWarp = 32;

static struct {
  const Launch* launch;
  std::vector<Thread> threads;
  std::vector<Stack> stacks;
  void* scheduler;  // its stack pointer
  uint32_t current;  // linear id in the block
  uint16_t lane_flag;
  uint64_t block;
  uint32_t tick, block_start, block_tick;
  std::vector<uint32_t> warp_tick;
  Buffer shared[kMaxSharedArrays];
  Buffer dynamic;
  Order order;
  Generator generator;
} m = {};

Place here() { return {m.launch->kernel.c_str(), blockIdx, m.current}; }

static uint16_t me() { return uint16_t(m.current) | m.lane_flag; }

// Whether a barrier, or the thread's own order, lies between an earlier access and what runs now.
static bool ordered(const Touch& before) {
  if (before.tick < m.block_tick || (before.thread == m.current && !m.lane_flag)) return true;
  const uint32_t warp = (before.thread & ~kAnyLane) / kWarp;
  return warp == m.current / kWarp && before.tick < m.warp_tick[warp];
}

static int64_t element(const Buffer& buffer, uint64_t offset) { return int64_t(offset) / buffer.element_bytes; }

void report_out_of_bounds(const Buffer& buffer, Space space, int64_t offset, uint32_t bytes, Access access) {
  const int64_t size = buffer.element_bytes;
  const int64_t index = offset >= 0 ? offset / size : -((-offset + size - 1) / size);
  report({"out-of-bounds", here(), buffer.name, index, -1,
          std::string(access == Access::read ? "read" : "write") + " of " + std::to_string(bytes) + " bytes in " +
              (space == Space::shared ? "shared" : "global") + " memory; the buffer has " +
              std::to_string(buffer.bytes / buffer.element_bytes) + " elements"});
}
void report_misaligned(const Buffer& buffer, int64_t offset, uint32_t bytes) {
  report({"misaligned", here(), buffer.name, element(buffer, offset), -1,
          "an access of " + std::to_string(bytes) + " bytes at byte " + std::to_string(offset)});
}
void report_local_out_of_bounds(const char* name, int64_t index, uint64_t elements) {
  report({"out-of-bounds", here(), name, index, -1, "a thread's own array of " + std::to_string(elements) + " elements"});
}
void report_warp_fault(const char* detail) { report({"warp-divergence", here(), "", -1, -1, detail}); }

static void report_race(const Buffer& buffer, uint64_t offset, uint16_t other, const char* detail) {
  // Where two lanes of the thread's own warp were merged, which was the other is not known.
  const uint32_t thread = other & ~kAnyLane;
  report({"race", here(), buffer.name, element(buffer, offset), thread == m.current ? -1 : int(thread), detail});
}

static void note_read(Shadow& cell) {
  const Touch now{m.tick, me()};
  Touch& read = cell.read;
  const uint32_t warp = m.current / kWarp;
  if (read.tick < m.block_tick || read.thread == now.thread) {
    read = now;
  } else if ((read.thread & ~kAnyLane) / kWarp != warp) {
    cell.other_read = now;
  } else {
    read = read.tick < m.warp_tick[warp] ? now : Touch{m.tick, uint16_t(m.current | kAnyLane)};
  }
}

void shared_read(const Buffer& buffer, uint64_t offset, uint32_t bytes) {
  const uint32_t granule = m.launch->granule;
  Shadow* cell = buffer.shadow + offset / granule;
  for (Shadow* end = buffer.shadow + (offset + bytes + granule - 1) / granule; cell < end; ++cell) {
    const uint64_t at = uint64_t(cell - buffer.shadow) * granule;
    if (cell->write.tick < m.block_start) {
      report({"unwritten", here(), buffer.name, element(buffer, at), -1, "a read of shared memory nobody wrote"});
    } else if (!ordered(cell->write)) {
      report_race(buffer, at, cell->write.thread, "a read, and a write by another thread, with no barrier between");
    }
    note_read(*cell);
  }
}

void shared_write(const Buffer& buffer, uint64_t offset, uint32_t bytes, const void* value) {
  const uint32_t granule = m.launch->granule;
  const char* source = static_cast<const char*>(value);
  Shadow* cell = buffer.shadow + offset / granule;
  for (Shadow* end = buffer.shadow + (offset + bytes + granule - 1) / granule; cell < end; ++cell) {
    const uint64_t at = uint64_t(cell - buffer.shadow) * granule;
    if (!ordered(cell->read)) {
      report_race(buffer, at, cell->read.thread, "a write, and a read by another thread, with no barrier between");
    } else if (!ordered(cell->other_read)) {
      report_race(buffer, at, cell->other_read.thread, "a write, and a read by another thread, with no barrier between");
    }
    if (cell->write.tick >= m.block_start && !ordered(cell->write)) {
      const uint64_t first = std::max(at, offset), last = std::min(at + granule, offset + bytes);
      if (memcmp(buffer.data + first, source + (first - offset), last - first) == 0) continue;
      report_race(buffer, at, cell->write.thread, "two threads write different values with no barrier between");
    }
    cell->write = {m.tick, me()};
  }
  memcpy(buffer.data + offset, value, bytes);
}

static uint64_t threads_of(const Dim3& d) { return uint64_t(d.x) * d.y * d.z; }
static uint32_t global_thread() { return uint32_t(m.block * threads_of(m.launch->block) + m.current + 1); }

void global_read(const Buffer& buffer, uint64_t offset, uint32_t bytes) {
  const uint64_t threads = threads_of(m.launch->block);
  for (uint64_t i = offset / buffer.element_bytes; i * buffer.element_bytes < offset + bytes; ++i) {
    if (buffer.writers[i] && (buffer.writers[i] - 1) / threads != m.block) {
      report({"race", here(), buffer.name, int64_t(i), -1, "a read of global memory that another block of this launch wrote"});
    }
  }
}

void global_write(const Buffer& buffer, uint64_t offset, uint32_t bytes, const void* value) {
  uint32_t* writers = buffer.writers;
  if (!writers) {
    const_cast<Buffer&>(buffer).writers = writers =
        static_cast<uint32_t*>(calloc(buffer.bytes / buffer.element_bytes + 1, sizeof(uint32_t)));
  }
  const uint64_t threads = threads_of(m.launch->block);
  const uint32_t writer = global_thread();
  for (uint64_t i = offset / buffer.element_bytes; i * buffer.element_bytes < offset + bytes; ++i) {
    const uint32_t before = writers[i];
    // Writes of one block may be ordered by its barriers, which are not followed here.
    if (before && (before - 1) / threads != m.block) {
      const uint64_t first = std::max(i * buffer.element_bytes, offset);
      const uint64_t last = std::min((i + 1) * buffer.element_bytes, offset + bytes);
      if (memcmp(buffer.data + first, static_cast<const char*>(value) + (first - offset), last - first) != 0) {
        report({"race", here(), buffer.name, int64_t(i), -1, "two blocks write different values to global memory"});
      }
    }
    writers[i] = writer;
  }
  memcpy(buffer.data + offset, value, bytes);
}

static void reserve_shared(Buffer& buffer, uint64_t bytes, uint32_t element_bytes, const char* name) {
  if (buffer.bytes != bytes || buffer.name != name) {
    free(buffer.data);
    free(buffer.shadow);
    buffer.data = static_cast<char*>(aligned_alloc(128, (bytes + 255) / 128 * 128));
    memset(buffer.data, 0xFF, bytes);
    buffer.shadow = static_cast<Shadow*>(calloc(bytes / m.launch->granule + 1, sizeof(Shadow)));
  }
  buffer.bytes = bytes;
  buffer.element_bytes = element_bytes;
  buffer.name = name;
}

const Buffer* shared_array(int slot, uint64_t bytes, uint32_t element_bytes, const char* name) {
  if (slot >= kMaxSharedArrays) {
    fprintf(stderr, "a kernel has more than %d shared arrays\n", kMaxSharedArrays);
    exit(3);
  }
  reserve_shared(m.shared[slot], bytes, element_bytes, name);
  return &m.shared[slot];
}

const Buffer* dynamic_shared_array(uint32_t element_bytes, const char* name) {
  reserve_shared(m.dynamic, m.launch->dynamic_shared, element_bytes, name);
  return &m.dynamic;
}

int lane_id() { return int(m.current % kWarp); }

static void wait(State state, int site, Collective run, void* argument, bool needs_all_lanes) {
  Thread& thread = m.threads[m.current];
  thread.state = state;
  thread.site = site;
  thread.run = run;
  thread.argument = argument;
  thread.needs_all_lanes = needs_all_lanes;
  cuda_on_cpu_switch(&thread.stack_pointer, m.scheduler);
}
void block_barrier(int site) { wait(State::at_block_barrier, site, nullptr, nullptr, false); }
void warp_barrier(int site) { wait(State::at_warp_barrier, site, nullptr, nullptr, false); }
void warp_collective(int site, Collective run, void* argument, bool needs_all_lanes) {
  wait(State::at_warp_barrier, site, run, argument, needs_all_lanes);
}

static void fiber_main() {
  m.launch->entry(m.launch->arguments.data());
  Thread& thread = m.threads[m.current];
  thread.state = State::exited;
  cuda_on_cpu_switch(&thread.stack_pointer, m.scheduler);
  abort();
}

static void become(uint32_t id) {
  m.current = id;
  threadIdx = m.threads[id].index;
}

// Lets a warp go on when all its lanes wait for one another. Returns whether it did.
static bool release_warp(uint32_t warp) {
  const uint32_t first = warp * kWarp, last = std::min<uint32_t>(first + kWarp, uint32_t(m.threads.size()));
  void* arguments[kWarp] = {};
  int waiting = -1, present = 0;
  bool mixed = false;
  for (uint32_t id = first; id < last; ++id) {
    const Thread& thread = m.threads[id];
    if (thread.state == State::exited) continue;
    if (thread.state != State::at_warp_barrier) return false;
    if (waiting >= 0 && thread.site != m.threads[waiting].site) mixed = true;
    if (waiting < 0) waiting = int(id);
    arguments[id - first] = thread.argument;
    ++present;
  }
  if (waiting < 0) return false;
  const Thread& leader = m.threads[waiting];
  become(uint32_t(waiting));
  if (mixed) {
    report_warp_fault("lanes of one warp wait at different warp-level calls");
  } else if (leader.run && leader.needs_all_lanes && present != kWarp) {
    report_warp_fault("a warp-level matrix call without all 32 lanes");
  } else if (leader.run) {
    m.lane_flag = kAnyLane;
    leader.run(arguments);
    m.lane_flag = 0;
  } else {
    m.warp_tick[warp] = ++m.tick;
  }
  for (uint32_t id = first; id < last; ++id) {
    if (m.threads[id].state == State::at_warp_barrier) m.threads[id].state = State::ready;
  }
  return true;
}

// Called when nobody can run. Returns false when all threads have exited.
static bool release_block() {
  int waiting = -1, exited = -1, odd = -1;
  for (uint32_t id = 0; id < m.threads.size(); ++id) {
    const Thread& thread = m.threads[id];
    if (thread.state == State::exited) {
      exited = int(id);
    } else if (waiting < 0) {
      waiting = int(id);
    } else if (thread.state != m.threads[waiting].state || thread.site != m.threads[waiting].site) {
      odd = int(id);
    }
  }
  if (waiting < 0) return false;
  become(uint32_t(waiting));
  const int site = m.threads[waiting].site;
  if (odd >= 0) {
    report({"barrier-divergence", here(), "", -1, odd,
            "threads wait at barrier " + std::to_string(site) + " and at barrier " + std::to_string(m.threads[odd].site)});
  } else if (exited >= 0) {
    report({"barrier-divergence", here(), "", -1, exited,
            "threads wait at barrier " + std::to_string(site) + " that others have exited without"});
  }
  m.block_tick = ++m.tick;
  for (Thread& thread : m.threads) {
    if (thread.state != State::exited) thread.state = State::ready;
  }
  return true;
}

template <class T>
static void arrange(std::vector<T>& order) {
  if (m.order != Order::shuffled) return;
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[m.generator.next() % i]);
}
static std::vector<uint32_t> sequence(size_t count) {
  std::vector<uint32_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = uint32_t(m.order == Order::reverse ? count - 1 - i : i);
  return order;
}

static void run_block(std::vector<uint32_t>& order) {
  m.block_start = m.block_tick = ++m.tick;
  std::fill(m.warp_tick.begin(), m.warp_tick.end(), m.tick);
  for (uint32_t id = 0; id < m.threads.size(); ++id) {
    m.threads[id].state = State::ready;
    if (m.launch->fibers) m.threads[id].stack_pointer = m.stacks[id].start(fiber_main);
  }
  do {
    for (bool progress = true; progress;) {
      progress = false;
      arrange(order);
      for (uint32_t id : order) {
        Thread& thread = m.threads[id];
        if (thread.state != State::ready) continue;
        become(id);
        if (m.launch->fibers) {
          cuda_on_cpu_switch(&m.scheduler, thread.stack_pointer);
        } else {
          m.launch->entry(m.launch->arguments.data());
          thread.state = State::exited;
        }
      }
      if (!m.launch->fibers) return;
      for (uint32_t warp = 0; warp < m.warp_tick.size(); ++warp) progress |= release_warp(warp);
    }
  } while (release_block());
}

static void run(const Launch& launch) {
  m.launch = &launch;
  blockDim = launch.block;
  gridDim = launch.grid;
  const size_t count = threads_of(launch.block);
  m.threads.assign(count, Thread{});
  m.warp_tick.assign((count + kWarp - 1) / kWarp, 0);
  for (size_t id = 0; id < count; ++id) {
    const unsigned i = unsigned(id);
    m.threads[id].index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
  }
  while (launch.fibers && m.stacks.size() < count) m.stacks.emplace_back();
  for (Buffer* buffer : launch.arguments) {
    free(buffer->writers);
    buffer->writers = nullptr;
  }
  for (Buffer& buffer : m.shared) buffer.name = nullptr;
  m.dynamic.name = nullptr;
  std::vector<uint32_t> blocks = sequence(threads_of(launch.grid)), order = sequence(count);
  arrange(blocks);
  for (uint32_t block : blocks) {
    m.block = block;
    blockIdx = {block % launch.grid.x, block / launch.grid.x % launch.grid.y, block / launch.grid.x / launch.grid.y};
    run_block(order);
  }
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

[[noreturn]] static void fail(const std::string& message) {
  fprintf(stderr, "%s\n", message.c_str());
  exit(3);
}

static Buffer map_buffer(int file, const char* name, long offset, unsigned long bytes, unsigned element_bytes) {
  // Buffers begin on pages of their own, and a fresh name lives as long as the process.
  void* data = mmap(nullptr, std::max(bytes, 1ul), PROT_READ | PROT_WRITE, MAP_SHARED, file, offset);
  if (data == MAP_FAILED) fail("cannot map the buffers");
  return {static_cast<char*>(data), bytes, element_bytes, strdup(name), nullptr, nullptr};
}

int main(int argc, char** argv) {
  if (argc != 3) fail("usage: machine LIBRARY REQUEST");
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) fail(dlerror());
  FILE* request = fopen(argv[2], "r");
  char word[4096], order[32], name[256], symbol[256];
  unsigned long seed;
  if (!request || fscanf(request, "data %4095s order %31s %lu", word, order, &seed) != 3) fail("bad request");
  const int file = open(word, O_RDWR);
  if (file < 0) fail("cannot open the data");
  m.order = order[0] == 'f' ? Order::forward : order[0] == 'r' ? Order::reverse : Order::shuffled;
  m.generator.state = seed;
  std::vector<Buffer*> buffers;
  while (fscanf(request, "%31s", order) == 1) {
    if (!strcmp(order, "buffer")) {
      long offset;
      unsigned long bytes;
      unsigned element_bytes;
      if (fscanf(request, "%255s %ld %lu %u", name, &offset, &bytes, &element_bytes) != 4) fail("bad buffer");
      buffers.push_back(new Buffer(map_buffer(file, name, offset, bytes, element_bytes)));
      continue;
    }
    Launch launch;
    int fibers;
    unsigned count, index;
    Dim3 &g = launch.grid, &b = launch.block;
    if (strcmp(order, "launch") ||
        fscanf(request, "%255s %255s %u %u %u %u %u %u %lu %d %u %u", name, symbol, &g.x, &g.y, &g.z, &b.x, &b.y, &b.z,
               &launch.dynamic_shared, &fibers, &launch.granule, &count) != 12) {
      fail("bad launch");
    }
    launch.kernel = name;
    launch.fibers = fibers != 0;
    launch.entry = reinterpret_cast<Kernel>(dlsym(library, symbol));
    if (!launch.entry) fail(dlerror());
    for (unsigned i = 0; i < count; ++i) {
      if (fscanf(request, "%u", &index) != 1 || index >= buffers.size()) fail("bad argument");
      launch.arguments.push_back(buffers[index]);
    }
    run(launch);
  }
  finish_reports();
  return 0;
}
