// Warp-level functions: shuffles, and nvcuda::wmma fragments spread over the 32 lanes of a warp.
// NVIDIA leaves the spread unspecified; here element e of a fragment is x[e / 32] of lane e % 32.
#pragma once
#include "device_math.h"

namespace cuda_on_cpu {

struct Shuffle {
  uint64_t sent, received;
  int source;  // lane
};

inline void exchange(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    Shuffle* mine = static_cast<Shuffle*>(lanes[lane]);
    if (!mine) continue;
    const Shuffle* theirs = static_cast<const Shuffle*>(lanes[mine->source]);
    mine->received = theirs ? theirs->sent : ~uint64_t(0);  // undefined on a GPU, and no fault if nobody uses it
  }
}

template <class T>
inline T shuffle(int site, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  if (!(mask >> lane_id() & 1u)) report_warp_fault("a shuffle's mask leaves out the lane that calls it");
  Shuffle mine{0, 0, source};
  memcpy(&mine.sent, &value, sizeof(T));
  warp_collective(site, exchange, &mine, false);
  memcpy(&value, &mine.received, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu

// The rewriting puts the ordinal of the call in front of the arguments.
template <class T>
inline T cuda_on_cpu_shfl_sync(int site, unsigned mask, T value, int lane, int width) {
  const int self = cuda_on_cpu::lane_id();
  return cuda_on_cpu::shuffle(site, mask, value, (self & ~(width - 1)) + (lane & (width - 1)));
}
template <class T>
inline T cuda_on_cpu_shfl_up_sync(int site, unsigned mask, T value, unsigned delta, int width) {
  const int self = cuda_on_cpu::lane_id(), source = self - int(delta);
  return cuda_on_cpu::shuffle(site, mask, value, source < (self & ~(width - 1)) ? self : source);
}
template <class T>
inline T cuda_on_cpu_shfl_down_sync(int site, unsigned mask, T value, unsigned delta, int width) {
  const int self = cuda_on_cpu::lane_id(), source = self + int(delta);
  return cuda_on_cpu::shuffle(site, mask, value, source >= (self & ~(width - 1)) + width ? self : source);
}
template <class T>
inline T cuda_on_cpu_shfl_xor_sync(int site, unsigned mask, T value, int lanes, int width) {
  const int self = cuda_on_cpu::lane_id(), source = self ^ lanes;
  return cuda_on_cpu::shuffle(site, mask, value, source >= (self & ~(width - 1)) + width ? self : source);
}
inline unsigned __activemask() { return 0xffffffffu; }

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K>
struct extent;
template <int M, int N, int K>
struct extent<matrix_a, M, N, K> {
  static constexpr int rows = M, columns = K;
};
template <int M, int N, int K>
struct extent<matrix_b, M, N, K> {
  static constexpr int rows = K, columns = N;
};
template <int M, int N, int K>
struct extent<accumulator, M, N, K> {
  static constexpr int rows = M, columns = N;
};

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment : extent<Use, M, N, K> {
  static_assert((M == 16 && N == 16 && K == 16) || (M == 32 && N == 8 && K == 16) || (M == 8 && N == 32 && K == 16),
                "the shapes of half and bfloat16 fragments are 16x16x16, 32x8x16 and 8x32x16");
  using element_type = T;
  static constexpr int num_elements = fragment::rows * fragment::columns / 32;
  T x[num_elements];
};

template <class F, class P>
struct Transfer {
  F* fragment;
  P memory;
  unsigned stride;
  bool row_major;
};

template <class F, class P, bool STORE>
inline void transfer(void* const* lanes) {
  using T = typename F::element_type;
  const Transfer<F, P>& first = *static_cast<const Transfer<F, P>*>(lanes[0]);
  for (int lane = 1; lane < 32; ++lane) {
    const Transfer<F, P>& other = *static_cast<const Transfer<F, P>*>(lanes[lane]);
    if (!(other.memory == first.memory) || other.stride != first.stride) {
      cuda_on_cpu::report_warp_fault("the lanes of a warp give a wmma function different pointers or strides");
      break;
    }
  }
  if (first.memory.offset % 32 || first.stride * sizeof(T) % 16) {
    cuda_on_cpu::report_misaligned(*first.memory.buffer, first.memory.offset, 32);
  }
  for (int row = 0; row < F::rows; ++row) {
    for (int column = 0; column < F::columns; ++column) {
      const int element = row * F::columns + column;
      const int64_t at = first.row_major ? row * int64_t(first.stride) + column : column * int64_t(first.stride) + row;
      T& value = static_cast<const Transfer<F, P>*>(lanes[element % 32])->fragment->x[element / 32];
      if (STORE) {
        first.memory[at].store(value);
      } else {
        value = first.memory[at].load();
      }
    }
  }
}

template <class Use, int M, int N, int K, class T, class L>
inline void fill_fragment(fragment<Use, M, N, K, T, L>& f, float value) {
  for (T& x : f.x) x = T(value);
}

template <class Use, int M, int N, int K, class T, class L, cuda_on_cpu::Space S>
inline void load_matrix_sync(int site, fragment<Use, M, N, K, T, L>& f, const cuda_on_cpu::Pointer<T, S>& memory,
                             unsigned stride) {
  using F = fragment<Use, M, N, K, T, L>;
  using P = cuda_on_cpu::Pointer<T, S>;
  static_assert(!std::is_same<Use, accumulator>::value, "loading an accumulator needs its layout");
  Transfer<F, P> transfer_{&f, memory, stride, std::is_same<L, row_major>::value};
  cuda_on_cpu::warp_collective(site, transfer<F, P, false>, &transfer_, true);
}
template <int M, int N, int K, class T, cuda_on_cpu::Space S>
inline void load_matrix_sync(int site, fragment<accumulator, M, N, K, T>& f,
                             const cuda_on_cpu::Pointer<T, S>& memory, unsigned stride, layout_t layout) {
  using F = fragment<accumulator, M, N, K, T>;
  using P = cuda_on_cpu::Pointer<T, S>;
  Transfer<F, P> transfer_{&f, memory, stride, layout == mem_row_major};
  cuda_on_cpu::warp_collective(site, transfer<F, P, false>, &transfer_, true);
}
template <int M, int N, int K, class T, cuda_on_cpu::Space S>
inline void store_matrix_sync(int site, const cuda_on_cpu::Pointer<T, S>& memory,
                              fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout) {
  using F = fragment<accumulator, M, N, K, T>;
  using P = cuda_on_cpu::Pointer<T, S>;
  Transfer<F, P> transfer_{&f, memory, stride, layout == mem_row_major};
  cuda_on_cpu::warp_collective(site, transfer<F, P, true>, &transfer_, true);
}

template <class D, class A, class B, class C>
struct Operands {
  D* d;
  const A* a;
  const B* b;
  const C* c;
};

template <class D, class A, class B, class C>
inline void multiply_add(void* const* lanes) {
  constexpr int m = A::rows, k = A::columns, n = B::columns;
  float a[m * k], b[k * n], c[m * n], d[m * n];
  auto operands = [&](int element) { return static_cast<const Operands<D, A, B, C>*>(lanes[element % 32]); };
  for (int e = 0; e < m * k; ++e) a[e] = float(operands(e)->a->x[e / 32]);
  for (int e = 0; e < k * n; ++e) b[e] = float(operands(e)->b->x[e / 32]);
  for (int e = 0; e < m * n; ++e) c[e] = float(operands(e)->c->x[e / 32]);
  cuda_on_cpu::matrix_multiply_add(d, a, b, c, m, n, k);
  for (int e = 0; e < m * n; ++e) operands(e)->d->x[e / 32] = typename D::element_type(d[e]);
}

template <int M, int N, int K, class TD, class T, class LA, class LB, class TC>
inline void mma_sync(int site, fragment<accumulator, M, N, K, TD>& d, const fragment<matrix_a, M, N, K, T, LA>& a,
                     const fragment<matrix_b, M, N, K, T, LB>& b, const fragment<accumulator, M, N, K, TC>& c) {
  using D = fragment<accumulator, M, N, K, TD>;
  using A = fragment<matrix_a, M, N, K, T, LA>;
  using B = fragment<matrix_b, M, N, K, T, LB>;
  using C = fragment<accumulator, M, N, K, TC>;
  Operands<D, A, B, C> operands{&d, &a, &b, &c};
  cuda_on_cpu::warp_collective(site, multiply_add<D, A, B, C>, &operands, true);
}

}  // namespace wmma
}  // namespace nvcuda
