// Switching stacks without a system call: callee-saved registers go on the old stack, and come from the new one.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

extern "C" void cuda_on_cpu_switch(void** save_stack_pointer, void* new_stack_pointer);

#if defined(__x86_64__)
constexpr int kReturnWord = 6, kFrameWords = 8;
#elif defined(__aarch64__)
constexpr int kReturnWord = 11, kFrameWords = 20;
#else
#error "the fibers of cuda_on_cpu know x86-64 and aarch64 only"
#endif

class Stack {
 public:
  Stack() {
    memory_ = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0));
    if (memory_ == MAP_FAILED || mprotect(memory_, kGuard, PROT_NONE) != 0) {
      perror("no memory for the threads' stacks");
      exit(3);
    }
  }
  // The stack pointer of a fiber that starts in `entry`, which must never return.
  void* start(void (*entry)()) {
    uintptr_t* top = reinterpret_cast<uintptr_t*>(memory_ + kBytes - 64);
    uintptr_t* frame = top - kFrameWords;  // x86-64 enters a function with rsp = 16n + 8
    for (int i = 0; i < kFrameWords; ++i) frame[i] = 0;
    frame[kReturnWord] = reinterpret_cast<uintptr_t>(entry);
    return frame;
  }

 private:
  static constexpr size_t kBytes = 256 << 10, kGuard = 16 << 10;
  char* memory_;
};
