/* Runs compiled functions of an object file, linked with it, and stands in for what they call of TVM's runtime.
 *
 * Reads its request, lines of words, from a file:
 *
 *   data PATH tasks N reverse 0|1 buffers COUNT
 *                              contents of all buffers; tasks of a loop that may choose, and whether the last is first
 *   OFFSET BYTES ALIGNMENT     of each buffer: its contents in the file, and its address
 *   call NUMBER COUNT          a function of the table, and its arguments:
 *     tensor BUFFER OFFSET CODE BITS NDIM EXTENT...
 *     pointer BUFFER OFFSET | null | integer VALUE | real VALUE
 *
 * Contents are written back at the end. Behind each buffer and each piece of workspace lies memory that may not be
 * touched; what is left of their pages is filled, and looked at in the end. Faults go to standard error.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>

/* FUNCTIONS(F) is given with the compiler's command: F(name) of each function that may be called. */
#define DECLARE(name) extern int __tvm_ffi_##name(void *, const TVMFFIAny *, int32_t, TVMFFIAny *);
FUNCTIONS(DECLARE)
#define ENTRY(name) __tvm_ffi_##name,
static const TVMFFISafeCallType kFunctions[] = {FUNCTIONS(ENTRY)};

/* Variables of the object file; it has those that it reads. */
extern __attribute__((weak)) void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern __attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void *);
extern __attribute__((weak)) int (*__TVMBackendParallelLaunch)(FTVMParallelLambda, void *, int);

enum { kFault = 3, kRefused = 4, kBadRequest = 5, kPage = 4096, kFiller = 0xA5, kMaxArguments = 64, kMaxDims = 16 };

typedef struct Block {
  char name[32];
  unsigned char *pages, *data;
  uint64_t page_bytes, bytes; /* the pages without the two at their ends that may not be touched */
  struct Block *next;
} Block;

static Block *blocks, **buffers;
static int buffer_count, piece_count, task_count = 1, reverse_order;

static void end(int code, const char *text) {
  fprintf(stderr, "%s\n", text);
  _exit(code);
}

static Block *new_block(const char *kind, int number, uint64_t bytes, uint64_t alignment) {
  Block *block = calloc(1, sizeof(*block));
  uint64_t inner = (bytes + alignment + kPage - 1) / kPage * kPage; /* at least one page, for no bytes at all */
  unsigned char *pages = mmap(0, inner + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!block || pages == MAP_FAILED) end(kBadRequest, "there is no memory");
  if (mprotect(pages, kPage, PROT_NONE) || mprotect(pages + kPage + inner, kPage, PROT_NONE))
    end(kBadRequest, "memory can't be protected");
  snprintf(block->name, sizeof(block->name), "%s %d", kind, number);
  block->pages = pages + kPage;
  block->page_bytes = inner;
  block->bytes = bytes;
  /* as near to the end as it can be */
  block->data = block->pages + (inner - bytes) / alignment * alignment;
  memset(block->pages, kFiller, inner);
  memset(block->data, 0xFF, bytes); /* NaN, in all types */
  block->next = blocks;
  return blocks = block;
}

static void check_filler(const Block *block) {
  for (uint64_t i = 0; i < block->page_bytes; ++i) {
    const unsigned char *at = block->pages + i;
    if ((at < block->data || at >= block->data + block->bytes) && *at != kFiller) {
      fprintf(stderr, "out-of-bounds: write at byte %" PRId64 " of %s, which has %" PRIu64 "\n",
              (int64_t)(at - block->data), block->name, block->bytes);
      _exit(kFault);
    }
  }
}

static void *allocate(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  (void)device_type, (void)device_id, (void)code, (void)bits;
  return new_block("workspace", piece_count++, bytes, 64)->data;
}

static int release(int device_type, int device_id, void *data) {
  (void)device_type, (void)device_id;
  for (Block **link = &blocks; *link; link = &(*link)->next) {
    Block *block = *link;
    if (block->data != data) continue;
    check_filler(block);
    munmap(block->pages - kPage, block->page_bytes + 2 * kPage);
    *link = block->next;
    free(block);
    return 0;
  }
  end(kFault, "workspace: what is given back was not taken");
  return -1;
}

/* Tasks one after another, in an order that no thread pool need keep. */
static int launch(FTVMParallelLambda function, void *closure, int count) {
  TVMParallelGroupEnv environment = {0, count ? count : task_count};
  for (int i = 0; i < environment.num_task; ++i) {
    int failed = function(reverse_order ? environment.num_task - 1 - i : i, &environment, closure);
    if (failed) return failed;
  }
  return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
  fputs("\n", stderr);
}

static void on_signal(int number, siginfo_t *info, void *context) {
  (void)context;
  const unsigned char *at = info->si_addr;
  if (number == SIGSEGV || number == SIGBUS)
    for (const Block *block = blocks; block; block = block->next)
      if (at >= block->pages - kPage && at < block->pages + block->page_bytes + kPage) {
        fprintf(stderr, "out-of-bounds: access at byte %" PRId64 " of %s, which has %" PRIu64 "\n",
                (int64_t)(at - block->data), block->name, block->bytes);
        _exit(kFault);
      }
  fprintf(stderr, "crash: %s\n", strsignal(number));
  _exit(kFault);
}

static int64_t number(FILE *request) {
  int64_t value;
  if (fscanf(request, "%" SCNd64, &value) != 1) end(kBadRequest, "a number is missing");
  return value;
}

static void *place(FILE *request) {
  int64_t buffer = number(request), offset = number(request);
  if (buffer < 0 || buffer >= buffer_count) end(kBadRequest, "there is no such buffer");
  return buffers[buffer]->data + offset;
}

static void read_argument(FILE *request, TVMFFIAny *argument, DLTensor *tensor, int64_t *shape) {
  char kind[16];
  if (fscanf(request, "%15s", kind) != 1) end(kBadRequest, "an argument is missing");
  if (!strcmp(kind, "tensor")) {
    tensor->data = place(request);
    tensor->device.device_type = kDLCPU;
    tensor->dtype.code = (uint8_t)number(request);
    tensor->dtype.bits = (uint8_t)number(request);
    tensor->dtype.lanes = 1;
    tensor->ndim = (int32_t)number(request);
    if (tensor->ndim > kMaxDims) end(kBadRequest, "too many dimensions");
    for (int i = 0; i < tensor->ndim; ++i) shape[i] = number(request);
    tensor->shape = shape;
    argument->type_index = kTVMFFIDLTensorPtr;
    argument->v_ptr = tensor;
  } else if (!strcmp(kind, "pointer")) {
    argument->type_index = kTVMFFIOpaquePtr;
    argument->v_ptr = place(request);
  } else if (!strcmp(kind, "null")) {
    argument->type_index = kTVMFFINone;
  } else if (!strcmp(kind, "integer")) {
    argument->type_index = kTVMFFIInt;
    argument->v_int64 = number(request);
  } else if (!strcmp(kind, "real")) {
    argument->type_index = kTVMFFIFloat;
    if (fscanf(request, "%la", &argument->v_float64) != 1) end(kBadRequest, "a number is missing");
  } else {
    end(kBadRequest, "no such kind of argument");
  }
}

static void call(FILE *request) {
  static TVMFFIAny arguments[kMaxArguments];
  static DLTensor tensors[kMaxArguments];
  static int64_t shapes[kMaxArguments][kMaxDims];
  int64_t function = number(request), count = number(request);
  TVMFFIAny result;
  if (function < 0 || function >= (int64_t)(sizeof(kFunctions) / sizeof(*kFunctions)))
    end(kBadRequest, "there is no such function");
  if (count > kMaxArguments) end(kBadRequest, "too many arguments");
  memset(arguments, 0, sizeof(arguments));
  memset(tensors, 0, sizeof(tensors));
  memset(&result, 0, sizeof(result));
  for (int i = 0; i < count; ++i) read_argument(request, &arguments[i], &tensors[i], shapes[i]);
  if (kFunctions[function](0, arguments, (int32_t)count, &result)) exit(kRefused);
}

static void move_data(const char *path, const uint64_t *offsets, int back) {
  FILE *file = fopen(path, back ? "r+b" : "rb");
  if (!file) end(kBadRequest, "the data can't be opened");
  for (int i = 0; i < buffer_count; ++i) {
    size_t bytes = buffers[i]->bytes;
    if (fseek(file, (long)offsets[i], SEEK_SET) ||
        (back ? fwrite(buffers[i]->data, 1, bytes, file) : fread(buffers[i]->data, 1, bytes, file)) != bytes)
      end(kBadRequest, "the data can't be read or written");
  }
  if (fclose(file)) end(kBadRequest, "the data can't be written");
}

int main(int argc, char **argv) {
  char path[512], word[16];
  FILE *request = argc == 2 ? fopen(argv[1], "r") : 0;
  if (!request || fscanf(request, "data %511s tasks %d reverse %d buffers %d", path, &task_count, &reverse_order,
                         &buffer_count) != 4)
    end(kBadRequest, "the request can't be read");
  uint64_t *offsets = calloc((size_t)buffer_count + 1, sizeof(*offsets));
  buffers = calloc((size_t)buffer_count + 1, sizeof(*buffers));
  if (!offsets || !buffers) end(kBadRequest, "there is no memory");
  for (int i = 0; i < buffer_count; ++i) {
    uint64_t offset = (uint64_t)number(request), bytes = (uint64_t)number(request);
    offsets[i] = offset;
    buffers[i] = new_block("buffer", i, bytes, (uint64_t)number(request));
  }
  move_data(path, offsets, 0);
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = allocate;
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = release;
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = launch;
  struct sigaction action;
  memset(&action, 0, sizeof(action));
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO;
  for (const int *n = (const int[]){SIGSEGV, SIGBUS, SIGILL, SIGFPE, 0}; *n; ++n) sigaction(*n, &action, 0);
  while (fscanf(request, "%15s", word) == 1) {
    if (strcmp(word, "call")) end(kBadRequest, "a call is missing");
    call(request);
  }
  int pieces = 0;
  for (const Block *block = blocks; block; block = block->next) {
    check_filler(block);
    pieces += !strncmp(block->name, "workspace", 9);
  }
  if (pieces) end(kFault, "workspace: not all is given back");
  move_data(path, offsets, 1);
  return 0;
}
