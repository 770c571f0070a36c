// What the machine prints about wrong kernels.
#pragma once
#include <string>

#include "machine.h"

namespace cuda_on_cpu {

struct Place {
  const char* kernel;
  Dim3 block;
  uint32_t thread;
};

struct Fault {
  const char* kind;
  Place place;
  const char* buffer;  // empty if none
  int64_t index;       // in elements
  int other_thread;    // -1 if none
  std::string detail;
};

// Prints the first few faults of a kind, kernel and buffer; counts all.
void report(const Fault& fault);
void finish_reports();

}  // namespace cuda_on_cpu
