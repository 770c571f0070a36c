// Every access to shared and global memory: who touched what, and whether a barrier lies between.
#include <algorithm>

#include "state.h"

namespace cuda_on_cpu {

static uint16_t me() { return uint16_t(machine.current) | machine.lane_flag; }

// Whether a barrier, or the thread's own order, lies between an earlier access and what runs now.
static bool ordered(const Touch& before) {
  if (before.tick < machine.block_tick || (before.thread == machine.current && !machine.lane_flag)) return true;
  const uint32_t warp = (before.thread & ~kAnyLane) / kWarp;
  return warp == machine.current / kWarp && before.tick < machine.warp_tick[warp];
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
void report_local_misaligned(const char* name, int64_t offset, uint32_t bytes) {
  report({"misaligned", here(), name, -1, -1,
          "an access of " + std::to_string(bytes) + " bytes at byte " + std::to_string(offset)});
}
void report_warp_fault(const char* detail) { report({"warp-divergence", here(), "", -1, -1, detail}); }

static void report_race(const Buffer& buffer, uint64_t offset, uint16_t other, const char* detail) {
  // Where two lanes of the thread's own warp were merged, which was the other is not known.
  const uint32_t thread = other & ~kAnyLane;
  report({"race", here(), buffer.name, element(buffer, offset), thread == machine.current ? -1 : int(thread), detail});
}

static void note_read(Shadow& cell) {
  const Touch now{machine.tick, me()};
  Touch& read = cell.read;
  const uint32_t warp = machine.current / kWarp;
  if (read.tick < machine.block_tick || read.thread == now.thread) {
    read = now;
  } else if ((read.thread & ~kAnyLane) / kWarp != warp) {
    cell.other_read = now;
  } else {
    read = read.tick < machine.warp_tick[warp] ? now : Touch{machine.tick, uint16_t(machine.current | kAnyLane)};
  }
}

void shared_read(const Buffer& buffer, uint64_t offset, uint32_t bytes) {
  const uint32_t granule = machine.launch->granule;
  Shadow* cell = buffer.shadow + offset / granule;
  for (Shadow* end = buffer.shadow + (offset + bytes + granule - 1) / granule; cell < end; ++cell) {
    const uint64_t at = uint64_t(cell - buffer.shadow) * granule;
    if (cell->write.tick < machine.block_start) {
      report({"unwritten", here(), buffer.name, element(buffer, at), -1, "a read of shared memory nobody wrote"});
    } else if (!ordered(cell->write)) {
      report_race(buffer, at, cell->write.thread, "a read, and a write by another thread, with no barrier between");
    }
    note_read(*cell);
  }
}

static void check_reads(const Shadow& cell, const Buffer& buffer, uint64_t at) {
  for (const Touch* read : {&cell.read, &cell.other_read}) {
    if (ordered(*read)) continue;
    report_race(buffer, at, read->thread, "a write, and a read by another thread, with no barrier between");
    return;
  }
}

void shared_write(const Buffer& buffer, uint64_t offset, uint32_t bytes, const void* value) {
  const uint32_t granule = machine.launch->granule;
  const char* source = static_cast<const char*>(value);
  Shadow* cell = buffer.shadow + offset / granule;
  for (Shadow* end = buffer.shadow + (offset + bytes + granule - 1) / granule; cell < end; ++cell) {
    const uint64_t at = uint64_t(cell - buffer.shadow) * granule;
    check_reads(*cell, buffer, at);
    if (!ordered(cell->write)) {
      const uint64_t first = std::max(at, offset), last = std::min(at + granule, offset + bytes);
      if (memcmp(buffer.data + first, source + (first - offset), last - first) == 0) continue;
      report_race(buffer, at, cell->write.thread, "two threads write different values with no barrier between");
    }
    cell->write = {machine.tick, me()};
  }
  memcpy(buffer.data + offset, value, bytes);
}

void shared_invalidate(const Buffer& buffer, uint64_t offset, uint32_t bytes) {
  const uint32_t granule = machine.launch->granule;
  Shadow* cell = buffer.shadow + offset / granule;
  for (Shadow* end = buffer.shadow + (offset + bytes + granule - 1) / granule; cell < end; ++cell) {
    const uint64_t at = uint64_t(cell - buffer.shadow) * granule;
    check_reads(*cell, buffer, at);
    if (!ordered(cell->write)) continue;  // another thread copies there too: their values are compared when they arrive
    cell->write = {machine.tick, me()};
    memset(buffer.data + at, 0xFF, granule);
  }
}

static uint32_t global_thread() { return uint32_t(machine.block * threads_of(machine.launch->block) + machine.current + 1); }

void global_read(const Buffer& buffer, uint64_t offset, uint32_t bytes) {
  const uint64_t threads = threads_of(machine.launch->block);
  for (uint64_t i = offset / buffer.element_bytes; i * buffer.element_bytes < offset + bytes; ++i) {
    if (buffer.writers[i] && (buffer.writers[i] - 1) / threads != machine.block) {
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
  const uint64_t threads = threads_of(machine.launch->block);
  const uint32_t writer = global_thread();
  for (uint64_t i = offset / buffer.element_bytes; i * buffer.element_bytes < offset + bytes; ++i) {
    const uint32_t before = writers[i];
    // Writes of one block may be ordered by its barriers, which are not followed here.
    if (before && (before - 1) / threads != machine.block) {
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
    buffer.shadow = static_cast<Shadow*>(calloc(bytes / machine.launch->granule + 1, sizeof(Shadow)));
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
  reserve_shared(machine.shared[slot], bytes, element_bytes, name);
  return &machine.shared[slot];
}

const Buffer* dynamic_shared_array(uint32_t element_bytes, const char* name) {
  reserve_shared(machine.dynamic, machine.launch->dynamic_shared, element_bytes, name);
  return &machine.dynamic;
}

}  // namespace cuda_on_cpu
