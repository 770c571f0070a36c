// Switching stacks without a system call: callee-saved registers go on the old stack, and come from the new one.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

extern "C" void cuda_on_cpu_switch(void** save_stack_pointer, void* new_stack_pointer);

#if defined(__x86_64__)
asm(R"(
.text
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
constexpr int kSavedWords = 6, kReturnWord = 6, kFrameWords = 8;
#elif defined(__aarch64__)
asm(R"(
.text
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, %function
cuda_on_cpu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
constexpr int kSavedWords = 20, kReturnWord = 11, kFrameWords = 20;
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
