// What the compiled kernels and the machine that runs them (machine.cpp) share: buffers, faults, barriers.
#pragma once
#include <cstdint>
#include <cstring>

namespace cuda_on_cpu {

enum class Space { global, shared, local };
enum class Access { read, write };

struct Shadow;  // who touched one granule of shared memory, and when

struct Buffer {
  char* data;
  uint64_t bytes;
  uint32_t element_bytes;  // of the declared type: reports give indices in these
  const char* name;
  Shadow* shadow;     // shared memory only
  uint32_t* writers;  // global memory only: 1 + linear id of the last writing thread, an entry per element
};

struct Dim3 {
  unsigned x, y, z;
};

// Faults are recorded and the run goes on: a read gives zeros, a write is dropped.
void report_out_of_bounds(const Buffer& buffer, Space space, int64_t offset, uint32_t bytes, Access access);
void report_misaligned(const Buffer& buffer, int64_t offset, uint32_t bytes);
void report_local_out_of_bounds(const char* name, int64_t index, uint64_t elements);
void report_local_misaligned(const char* name, int64_t offset, uint32_t bytes);
void report_warp_fault(const char* detail);

void shared_read(const Buffer& buffer, uint64_t offset, uint32_t bytes);
void shared_write(const Buffer& buffer, uint64_t offset, uint32_t bytes, const void* value);
// An asynchronous copy begins: nobody else may touch its destination, and who reads it too early finds NaN.
void shared_invalidate(const Buffer& buffer, uint64_t offset, uint32_t bytes);
void global_read(const Buffer& buffer, uint64_t offset, uint32_t bytes);
void global_write(const Buffer& buffer, uint64_t offset, uint32_t bytes, const void* value);

const Buffer* shared_array(int slot, uint64_t bytes, uint32_t element_bytes, const char* name);
const Buffer* dynamic_shared_array(uint32_t element_bytes, const char* name);

// Barriers: `site` is the ordinal of the barrier in the kernel's source.
void block_barrier(int site);
void warp_barrier(int site);

// Waits for all lanes of the warp; then `run` is called once with each lane's argument (nullptr for a lane that exited).
using Collective = void (*)(void* const* lane_arguments);
void warp_collective(int site, Collective run, void* argument, bool needs_all_lanes);
int lane_id();

// d[m][n] = c[m][n] + sum over k of a[m][k] * b[k][n], all row-major.
void matrix_multiply_add(float* d, const float* a, const float* b, const float* c, int m, int n, int k);

}  // namespace cuda_on_cpu

extern cuda_on_cpu::Dim3 threadIdx, blockIdx, blockDim, gridDim;
