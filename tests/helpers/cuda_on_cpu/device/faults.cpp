#include "faults.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <tuple>

namespace cuda_on_cpu {

static constexpr int kPrintedEach = 3;
static constexpr long kEnough = 1000000;  // a wholly wrong kernel need not be run to its end

static std::map<std::tuple<std::string, std::string, std::string, std::string>, long> counts;
static long total;

static void print_counts() {
  for (const auto& [key, count] : counts) {
    printf("count\t%s\t%s\t%s\t%ld\n", std::get<0>(key).c_str(), std::get<1>(key).c_str(), std::get<2>(key).c_str(), count);
  }
  fflush(stdout);
}

void report(const Fault& fault) {
  const Place& p = fault.place;
  // The detail without its numbers tells a read from a write.
  long& count = counts[{fault.kind, p.kernel, fault.buffer, fault.detail.substr(0, fault.detail.find_first_of("0123456789"))}];
  if (++count <= kPrintedEach) {
    printf("fault\t%s\t%s\t%s\t%lld\t%u,%u,%u\t%u\t%d\t%s\n", fault.kind, p.kernel, fault.buffer,
           static_cast<long long>(fault.index), p.block.x, p.block.y, p.block.z, p.thread, fault.other_thread,
           fault.detail.c_str());
    fflush(stdout);
  }
  if (++total >= kEnough) {
    finish_reports();
    exit(0);
  }
}

void finish_reports() {
  print_counts();
  printf("end\n");
  fflush(stdout);
}

}  // namespace cuda_on_cpu
