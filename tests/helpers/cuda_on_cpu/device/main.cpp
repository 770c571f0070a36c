// Runs launches of one compiled library, thread after thread, and prints what is wrong with them.
// usage: machine LIBRARY REQUEST. A request's lines are written by execute.py; a fault is one line of tabs on stdout.
#include <dlfcn.h>
#include <fcntl.h>

#include <algorithm>

#include "state.h"

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
  machine.order = order[0] == 'f' ? Order::forward : order[0] == 'r' ? Order::reverse : Order::shuffled;
  machine.generator.state = seed;
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
