/* Runs compiled functions of an object file, linked with it, and stands in for what they call of TVM's runtime.
 *
 * Reads its request, 64-bit numbers, from the first file it is given; the second holds contents of all buffers:
 *
 *   TASKS REVERSE BUFFERS CALLS
 *                              tasks of a loop that may choose, whether the last is first, and how many follow
 *   OFFSET BYTES ALIGNMENT     of each buffer: its contents in the file, and its address
 *   FUNCTION COUNT             of each call: a function of the table, and its arguments, which begin with their kind:
 *     0 BUFFER OFFSET CODE BITS NDIM EXTENT...    a tensor
 *     1 BUFFER OFFSET                             a pointer
 *     2 | 3 VALUE | 4 BITS                        null, an integer, a real number
 *
 * Contents are written back at the end. Behind each buffer and each piece of workspace lies memory that may not be
 * touched; what is left of their pages is filled, and looked at in the end. Faults go to standard error.
 *
 * There is no C library in it, which zig would compile for half a minute first: the kernel is called as it is.
 */
#include <stddef.h>
#include <stdint.h>

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

/* Numbers of Linux on AArch64. */
enum { kOpenAt = 56, kSeek = 62, kWrite = 64, kReadAt = 67, kWriteAt = 68, kExit = 94, kSigAction = 134, kUnmap = 215 };
enum { kMap = 222, kProtect = 226, kReadOnly = 0, kReadWrite = 2, kSeekEnd = 2, kHere = -100, kMapPrivate = 0x22 };
enum { kIllegal = 4, kBus = 7, kArithmetic = 8, kSegment = 11, kSigInfo = 4 };

/* Of <signal.h>, as far as it is needed. */
typedef struct SigInfo {
  int number, error, code, padding;
  const unsigned char *address;
} SigInfo;
typedef struct SigAction {
  void (*handler)(int, SigInfo *, void *);
  unsigned long flags;
  void (*restorer)(void);
  unsigned long mask;
} SigAction;

/* Compilers call these where they like; they come with the compiler. */
extern void *memset(void *, int, size_t);

typedef struct Block {
  const char *kind;
  int number;
  unsigned char *pages, *data;
  uint64_t page_bytes, bytes; /* the pages without the two at their ends that may not be touched */
  struct Block *next;
} Block;

static Block *blocks, **buffers;
static int buffer_count, piece_count, task_count = 1, reverse_order;

static long system_call(long number, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0; /* from -4095 to -1 for an error */
}

static int failed(long result) { return result < 0 && result >= -4095; }

static void leave(int code) {
  for (;;) system_call(kExit, code, 0, 0, 0, 0, 0);
}

static void say(const char *text) {
  long length = 0;
  while (text[length]) ++length;
  system_call(kWrite, 2, (long)text, length, 0, 0, 0);
}

static void say_number(int64_t value) {
  char digits[24], *at = digits + sizeof(digits) - 1;
  uint64_t rest = value < 0 ? -(uint64_t)value : (uint64_t)value;
  *at = 0;
  do *--at = (char)('0' + rest % 10);
  while (rest /= 10);
  if (value < 0) *--at = '-';
  say(at);
}

static void end(int code, const char *text) {
  say(text);
  say("\n");
  leave(code);
}

/* Ends with what was done at an address in a block or beside it. */
static void outside(const char *what, const Block *block, const unsigned char *at) {
  say("out-of-bounds: ");
  say(what);
  say(" at byte ");
  say_number(at - block->data);
  say(" of ");
  say(block->kind);
  say(" ");
  say_number(block->number);
  say(", which has ");
  say_number((int64_t)block->bytes);
  end(kFault, "");
}

/* Zeros. */
static void *pages_of(uint64_t bytes) {
  long pages = system_call(kMap, 0, (long)bytes, 3 /* read and write */, kMapPrivate, -1, 0);
  if (failed(pages)) end(kBadRequest, "there is no memory");
  return (void *)pages;
}

static Block *new_block(const char *kind, int number, uint64_t bytes, uint64_t alignment) {
  uint64_t inner = (bytes + alignment + kPage - 1) / kPage * kPage; /* at least one page, for no bytes at all */
  Block *block = pages_of(inner + 3 * kPage);                       /* the first page holds the block itself */
  unsigned char *pages = (unsigned char *)block + kPage;
  if (system_call(kProtect, (long)pages, kPage, 0, 0, 0, 0) ||
      system_call(kProtect, (long)(pages + kPage + inner), kPage, 0, 0, 0, 0))
    end(kBadRequest, "memory can't be protected");
  block->kind = kind;
  block->number = number;
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
    if ((at < block->data || at >= block->data + block->bytes) && *at != kFiller) outside("write", block, at);
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
    *link = block->next;
    system_call(kUnmap, (long)block, (long)(block->page_bytes + 3 * kPage), 0, 0, 0, 0);
    return 0;
  }
  end(kFault, "workspace: what is given back was not taken");
  return -1;
}

/* Tasks one after another, in an order that no thread pool need keep. */
static int launch(FTVMParallelLambda function, void *closure, int count) {
  TVMParallelGroupEnv environment = {0, count ? count : task_count};
  for (int i = 0; i < environment.num_task; ++i) {
    int error = function(reverse_order ? environment.num_task - 1 - i : i, &environment, closure);
    if (error) return error;
  }
  return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  say(kind);
  say(": ");
  for (int32_t i = 0; i < count; ++i) say(parts[i]);
  say("\n");
}

static void on_signal(int number, SigInfo *info, void *context) {
  (void)context;
  const unsigned char *at = info->address;
  if (number == kSegment || number == kBus)
    for (const Block *block = blocks; block; block = block->next)
      if (at >= block->pages - kPage && at < block->pages + block->page_bytes + kPage) outside("access", block, at);
  say("crash: ");
  end(kFault, number == kIllegal      ? "Illegal instruction"
              : number == kBus        ? "Bus error"
              : number == kArithmetic ? "Arithmetic exception"
                                      : "Segmentation fault");
}

static const int64_t *request, *request_end;

static int64_t number(void) {
  if (request >= request_end) end(kBadRequest, "a number is missing");
  return *request++;
}

static void *place(void) {
  int64_t buffer = number(), offset = number();
  if (buffer < 0 || buffer >= buffer_count) end(kBadRequest, "there is no such buffer");
  return buffers[buffer]->data + offset;
}

static void read_tensor(DLTensor *tensor, int64_t *shape) {
  tensor->data = place();
  tensor->device.device_type = kDLCPU;
  tensor->dtype.code = (uint8_t)number();
  tensor->dtype.bits = (uint8_t)number();
  tensor->dtype.lanes = 1;
  tensor->ndim = (int32_t)number();
  if (tensor->ndim > kMaxDims) end(kBadRequest, "too many dimensions");
  for (int i = 0; i < tensor->ndim; ++i) shape[i] = number();
  tensor->shape = shape;
}

static void read_argument(TVMFFIAny *argument, DLTensor *tensor, int64_t *shape) {
  static const int32_t kTypes[] = {kTVMFFIDLTensorPtr, kTVMFFIOpaquePtr, kTVMFFINone, kTVMFFIInt, kTVMFFIFloat};
  uint64_t kind = (uint64_t)number();
  if (kind >= sizeof(kTypes) / sizeof(*kTypes)) end(kBadRequest, "no such kind of argument");
  argument->type_index = kTypes[kind];
  if (kind == 0) {
    read_tensor(tensor, shape);
    argument->v_ptr = tensor;
  } else if (kind == 1) {
    argument->v_ptr = place();
  } else if (kind > 2) {
    argument->v_int64 = number(); /* of a real number the bits */
  }
}

static void call(void) {
  static TVMFFIAny arguments[kMaxArguments];
  static DLTensor tensors[kMaxArguments];
  static int64_t shapes[kMaxArguments][kMaxDims];
  int64_t function = number(), count = number();
  TVMFFIAny result;
  if (function < 0 || function >= (int64_t)(sizeof(kFunctions) / sizeof(*kFunctions)))
    end(kBadRequest, "there is no such function");
  if (count > kMaxArguments) end(kBadRequest, "too many arguments");
  memset(arguments, 0, sizeof(arguments));
  memset(tensors, 0, sizeof(tensors));
  memset(&result, 0, sizeof(result));
  for (int i = 0; i < count; ++i) read_argument(&arguments[i], &tensors[i], shapes[i]);
  if (kFunctions[function](0, arguments, (int32_t)count, &result)) leave(kRefused);
}

static long opened(const char *path, int mode) {
  long file = system_call(kOpenAt, kHere, (long)path, mode, 0, 0, 0);
  if (failed(file)) end(kBadRequest, "a file can't be opened");
  return file;
}

/* Some bytes of a file into memory, or back. */
static void move(long file, unsigned char *data, uint64_t bytes, uint64_t offset, int back) {
  while (bytes) {
    long done = system_call(back ? kWriteAt : kReadAt, file, (long)data, (long)bytes, (long)offset, 0, 0);
    if (done <= 0) end(kBadRequest, "the data can't be read or written");
    data += done, bytes -= (uint64_t)done, offset += (uint64_t)done;
  }
}

static void read_request(const char *path) {
  long file = opened(path, kReadOnly), bytes = system_call(kSeek, file, 0, kSeekEnd, 0, 0, 0);
  if (bytes <= 0) end(kBadRequest, "the request can't be read");
  unsigned char *data = pages_of((uint64_t)bytes);
  move(file, data, (uint64_t)bytes, 0, 0);
  request = (const int64_t *)data;
  request_end = request + bytes / (long)sizeof(*request);
}

static void watch(void) {
  SigAction action;
  memset(&action, 0, sizeof(action));
  action.handler = on_signal;
  action.flags = kSigInfo;
  for (const int *n = (const int[]){kIllegal, kBus, kArithmetic, kSegment, 0}; *n; ++n)
    if (system_call(kSigAction, *n, (long)&action, 0, sizeof(action.mask), 0, 0))
      end(kBadRequest, "signals can't be watched");
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = allocate;
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = release;
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = launch;
}

/* The stack as a program finds it: the number of words of the command, and these. */
__attribute__((used)) static void begin(const long *stack) {
  const char *const *words = (const char *const *)(stack + 1);
  if (stack[0] != 3) end(kBadRequest, "the request and the data are to be named");
  read_request(words[1]);
  long file = opened(words[2], kReadWrite);
  task_count = (int)number(), reverse_order = (int)number(), buffer_count = (int)number();
  int64_t calls = number();
  uint64_t *offsets = pages_of((uint64_t)buffer_count * sizeof(*offsets) + 1);
  buffers = pages_of((uint64_t)buffer_count * sizeof(*buffers) + 1);
  for (int i = 0; i < buffer_count; ++i) {
    offsets[i] = (uint64_t)number();
    uint64_t bytes = (uint64_t)number();
    buffers[i] = new_block("buffer", i, bytes, (uint64_t)number());
    move(file, buffers[i]->data, bytes, offsets[i], 0);
  }
  watch();
  while (calls--) call();
  int pieces = 0;
  for (const Block *block = blocks; block; block = block->next) {
    check_filler(block);
    ++pieces;
  }
  if (pieces > buffer_count) end(kFault, "workspace: not all is given back");
  for (int i = 0; i < buffer_count; ++i) move(file, buffers[i]->data, buffers[i]->bytes, offsets[i], 1);
  leave(0);
}

__asm__(".globl _start\n_start:\n  mov x0, sp\n  b begin\n");
