// cp.async: a copy's data reaches shared memory when its thread waits for the copy's group, and not before.
#include "state.h"

namespace cuda_on_cpu {

void begin_copy(const Buffer& buffer, uint64_t offset, uint32_t bytes, const void* data) {
  Thread& thread = machine.threads[machine.current];
  Copy copy{&buffer, offset, bytes, thread.group, {}};
  memcpy(copy.data, data, bytes);
  thread.copies.push_back(copy);
  shared_invalidate(buffer, offset, bytes);
}

void commit_copies() { ++machine.threads[machine.current].group; }

void wait_copies(uint32_t pending_groups) {
  Thread& thread = machine.threads[machine.current];
  std::vector<Copy> pending;
  for (const Copy& copy : thread.copies) {
    if (copy.group + pending_groups < thread.group) {
      shared_write(*copy.buffer, copy.offset, copy.bytes, copy.data);
    } else {
      pending.push_back(copy);
    }
  }
  thread.copies.swap(pending);
}

}  // namespace cuda_on_cpu
