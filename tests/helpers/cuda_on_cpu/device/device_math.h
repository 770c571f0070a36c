// Device functions that generated kernels call, and <cmath>'s names that CUDA shares.
#pragma once
#include <cmath>

#include "memory.h"
#include "numbers.h"

#define CUDA_ON_CPU_MINMAX(T)                          \
  inline T max(T a, T b) { return a > b ? a : b; }     \
  inline T min(T a, T b) { return a < b ? a : b; }
CUDA_ON_CPU_MINMAX(int)
CUDA_ON_CPU_MINMAX(unsigned)
CUDA_ON_CPU_MINMAX(long)
CUDA_ON_CPU_MINMAX(unsigned long)
CUDA_ON_CPU_MINMAX(long long)
CUDA_ON_CPU_MINMAX(unsigned long long)
CUDA_ON_CPU_MINMAX(half)
CUDA_ON_CPU_MINMAX(nv_bfloat16)
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }

inline bool cuda_on_cpu_isnan(float v) { return std::isnan(v); }
inline bool cuda_on_cpu_isnan(double v) { return std::isnan(v); }
inline bool cuda_on_cpu_isinf(float v) { return std::isinf(v); }
inline bool cuda_on_cpu_isinf(double v) { return std::isinf(v); }
inline bool cuda_on_cpu_isfinite(float v) { return std::isfinite(v); }
inline bool cuda_on_cpu_isfinite(double v) { return std::isfinite(v); }
#undef isnan
#undef isinf
#undef isfinite
#define isnan cuda_on_cpu_isnan
#define isinf cuda_on_cpu_isinf
#define isfinite cuda_on_cpu_isfinite

inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / sqrt(v); }
inline float __expf(float v) { return expf(v); }
inline float __exp10f(float v) { return powf(10.0f, v); }
inline float __logf(float v) { return logf(v); }
inline float __log2f(float v) { return log2f(v); }
inline float __log10f(float v) { return log10f(v); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __sinf(float v) { return sinf(v); }
inline float __cosf(float v) { return cosf(v); }
inline float __tanhf(float v) { return tanhf(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fsqrt_rn(float v) { return sqrtf(v); }
inline float __saturatef(float v) { return fminf(fmaxf(v, 0.0f), 1.0f); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(v) : 64; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }

inline half __float2half(float v) { return half(v); }
inline half __float2half_rn(float v) { return half(v); }
inline float __half2float(half v) { return float(v); }
inline nv_bfloat16 __float2bfloat16(float v) { return nv_bfloat16(v); }
inline nv_bfloat16 __float2bfloat16_rn(float v) { return nv_bfloat16(v); }
inline float __bfloat162float(nv_bfloat16 v) { return float(v); }

#define CUDA_ON_CPU_UNARY(T, NAME, FUNCTION) \
  inline T NAME(T v) { return T(float(FUNCTION(float(v)))); }
#define CUDA_ON_CPU_SMALL_MATH(T)                                                       \
  CUDA_ON_CPU_UNARY(T, hexp, expf)                                                      \
  CUDA_ON_CPU_UNARY(T, hexp2, exp2f)                                                    \
  CUDA_ON_CPU_UNARY(T, hexp10, __exp10f)                                                \
  CUDA_ON_CPU_UNARY(T, hlog, logf)                                                      \
  CUDA_ON_CPU_UNARY(T, hlog2, log2f)                                                    \
  CUDA_ON_CPU_UNARY(T, hlog10, log10f)                                                  \
  CUDA_ON_CPU_UNARY(T, hsqrt, sqrtf)                                                    \
  CUDA_ON_CPU_UNARY(T, hrsqrt, rsqrtf)                                                  \
  CUDA_ON_CPU_UNARY(T, hrcp, __frcp_rn)                                                 \
  CUDA_ON_CPU_UNARY(T, hsin, sinf)                                                      \
  CUDA_ON_CPU_UNARY(T, hcos, cosf)                                                      \
  CUDA_ON_CPU_UNARY(T, htan, tanf)                                                      \
  CUDA_ON_CPU_UNARY(T, hatan, atanf)                                                    \
  CUDA_ON_CPU_UNARY(T, htanh, tanhf)                                                    \
  CUDA_ON_CPU_UNARY(T, herf, erff)                                                      \
  CUDA_ON_CPU_UNARY(T, hfloor, floorf)                                                  \
  CUDA_ON_CPU_UNARY(T, hceil, ceilf)                                                    \
  CUDA_ON_CPU_UNARY(T, htrunc, truncf)                                                  \
  CUDA_ON_CPU_UNARY(T, hrint, nearbyintf)                                               \
  CUDA_ON_CPU_UNARY(T, __habs, fabsf)                                                   \
  CUDA_ON_CPU_UNARY(T, __hneg, -)                                                       \
  inline T hpow(T a, T b) { return T(powf(float(a), float(b))); }                       \
  inline T __hfma(T a, T b, T c) { return T(fmaf(float(a), float(b), float(c))); }      \
  inline T __hadd(T a, T b) { return a + b; }                                           \
  inline T __hsub(T a, T b) { return a - b; }                                           \
  inline T __hmul(T a, T b) { return a * b; }                                           \
  inline T __hdiv(T a, T b) { return a / b; }                                           \
  inline T __hmax(T a, T b) { return T(fmaxf(float(a), float(b))); }                    \
  inline T __hmin(T a, T b) { return T(fminf(float(a), float(b))); }                    \
  inline bool __hgt(T a, T b) { return a > b; }                                         \
  inline bool __hlt(T a, T b) { return a < b; }                                         \
  inline bool __hisnan(T v) { return float(v) != float(v); }                            \
  inline bool cuda_on_cpu_isnan(T v) { return float(v) != float(v); }                   \
  inline bool cuda_on_cpu_isinf(T v) { return fabsf(float(v)) == __builtin_inff(); }
CUDA_ON_CPU_SMALL_MATH(half)
CUDA_ON_CPU_SMALL_MATH(nv_bfloat16)

#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_INF __builtin_inf()
#define CUDART_NAN __builtin_nan("")

template <class T, cuda_on_cpu::Space S>
inline T __ldg(const cuda_on_cpu::Pointer<T, S>& p) {
  return (*p).load();
}
// Threads run one after another, so that a plain addition is atomic; only global memory has it here.
template <class T>
inline T atomicAdd(const cuda_on_cpu::Global<T>& p, T value) {
  T old;
  if (!cuda_on_cpu::accessible<T>(*p.buffer, cuda_on_cpu::Space::global, p.offset, cuda_on_cpu::Access::write)) {
    return T(0);
  }
  memcpy(&old, p.buffer->data + p.offset, sizeof(T));
  const T sum = old + value;
  memcpy(p.buffer->data + p.offset, &sum, sizeof(T));
  return old;
}
