// What the parts of the machine share.
#pragma once
#include <string>
#include <vector>

#include "faults.h"
#include "fiber.h"
#include "machine.h"

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

struct Copy {  // of an asynchronous copy whose group is not waited for yet
  const Buffer* buffer;
  uint64_t offset;
  uint32_t bytes, group;
  char data[16];
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
  std::vector<Copy> copies;
  uint32_t group;  // the one that collects copies now
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

inline uint64_t threads_of(const Dim3& d) { return uint64_t(d.x) * d.y * d.z; }

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

struct Machine {
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
};
extern Machine machine;

Place here();  // what runs now

// Runs all blocks of a launch.
void run(const Launch& launch);

}  // namespace cuda_on_cpu
