// The functions that TVM writes for cp.async, without their inline assembly.
#pragma once
#include "memory.h"

namespace cuda_on_cpu {

void begin_copy(const Buffer& buffer, uint64_t offset, uint32_t bytes, const void* data);
void commit_copies();
void wait_copies(uint32_t pending_groups);

template <int BYTES>
struct alignas(BYTES) Chunk {
  char data[BYTES];
};

// Offsets are in elements of TO_SCALE and FROM_SCALE bytes.
template <int BYTES, int TO_SCALE, int FROM_SCALE, class T, class U>
inline void copy_async(const Pointer<T, Space::shared>& to, int to_offset, const Pointer<U, Space::global>& from,
                       int from_offset) {
  using C = Chunk<BYTES>;
  const int64_t target = to.offset + int64_t(to_offset) * TO_SCALE;
  const C chunk = Reference<C, Space::global>(from.buffer, from.offset + int64_t(from_offset) * FROM_SCALE).load();
  if (accessible<C>(*to.buffer, Space::shared, target, Access::write)) begin_copy(*to.buffer, target, BYTES, &chunk);
}
template <int BYTES, int TO_SCALE, int FROM_SCALE, class T, class U>
inline void copy_async(const Pointer<T, Space::shared>& to, int to_offset, const Pointer<U, Space::global>& from,
                       int from_offset, int predicate) {
  if (predicate) {
    copy_async<BYTES, TO_SCALE, FROM_SCALE>(to, to_offset, from, from_offset);
  } else {
    Reference<Chunk<BYTES>, Space::shared>(to.buffer, to.offset + int64_t(to_offset) * TO_SCALE).store({});
  }
}

}  // namespace cuda_on_cpu
