// half and __nv_bfloat16 (arithmetic in float, rounded to nearest even after each operation), and vector types.
#pragma once
#include <cstdint>
#include <cstring>

namespace cuda_on_cpu {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t half_from_float(float value) {
  const uint32_t bits = float_bits(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to infinity from 65520 on
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    return uint16_t(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u));
  }
  return uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}
inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x400u) return bits_float(sign | ((magnitude << 13) + 0x38000000u));
  const float value = float(magnitude) * 0x1p-24f;
  return sign ? -value : value;
}
inline uint16_t bfloat16_from_float(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline float bfloat16_to_float(uint16_t b) { return bits_float(uint32_t(b) << 16); }

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_SMALL_FLOAT(NAME, FROM_FLOAT, TO_FLOAT)                                      \
  struct NAME {                                                                                  \
    uint16_t bits;                                                                               \
    NAME() = default;                                                                            \
    NAME(float v) : bits(cuda_on_cpu::FROM_FLOAT(v)) {}                                          \
    NAME(double v) : NAME(float(v)) {}                                                           \
    NAME(int v) : NAME(float(v)) {}                                                              \
    NAME(unsigned v) : NAME(float(v)) {}                                                         \
    NAME(long v) : NAME(float(v)) {}                                                             \
    NAME(unsigned long v) : NAME(float(v)) {}                                                    \
    NAME(long long v) : NAME(float(v)) {}                                                        \
    NAME(unsigned long long v) : NAME(float(v)) {}                                               \
    operator float() const { return cuda_on_cpu::TO_FLOAT(bits); }                               \
  };                                                                                             \
  inline NAME operator-(NAME a) { return NAME(-float(a)); }                                      \
  inline NAME operator+(NAME a, NAME b) { return NAME(float(a) + float(b)); }                    \
  inline NAME operator-(NAME a, NAME b) { return NAME(float(a) - float(b)); }                    \
  inline NAME operator*(NAME a, NAME b) { return NAME(float(a) * float(b)); }                    \
  inline NAME operator/(NAME a, NAME b) { return NAME(float(a) / float(b)); }                    \
  inline bool operator<(NAME a, NAME b) { return float(a) < float(b); }                          \
  inline bool operator>(NAME a, NAME b) { return float(a) > float(b); }                          \
  inline bool operator<=(NAME a, NAME b) { return float(a) <= float(b); }                        \
  inline bool operator>=(NAME a, NAME b) { return float(a) >= float(b); }                        \
  inline bool operator==(NAME a, NAME b) { return float(a) == float(b); }                        \
  inline bool operator!=(NAME a, NAME b) { return float(a) != float(b); }

CUDA_ON_CPU_SMALL_FLOAT(half, half_from_float, half_to_float)
CUDA_ON_CPU_SMALL_FLOAT(nv_bfloat16, bfloat16_from_float, bfloat16_to_float)
using __half = half;
using __nv_bfloat16 = nv_bfloat16;

#define CUDA_ON_CPU_VECTOR2(NAME, T, ALIGN) \
  struct alignas(ALIGN) NAME {              \
    T x, y;                                 \
  };                                        \
  inline NAME make_##NAME(T x, T y) { return {x, y}; }
#define CUDA_ON_CPU_VECTOR3(NAME, T) \
  struct NAME {                      \
    T x, y, z;                       \
  };                                 \
  inline NAME make_##NAME(T x, T y, T z) { return {x, y, z}; }
#define CUDA_ON_CPU_VECTOR4(NAME, T, ALIGN) \
  struct alignas(ALIGN) NAME {              \
    T x, y, z, w;                           \
  };                                        \
  inline NAME make_##NAME(T x, T y, T z, T w) { return {x, y, z, w}; }
#define CUDA_ON_CPU_VECTORS(NAME, T)                               \
  struct NAME##1 {                                                 \
    T x;                                                           \
  };                                                               \
  inline NAME##1 make_##NAME##1(T x) { return {x}; }               \
  CUDA_ON_CPU_VECTOR2(NAME##2, T, 2 * sizeof(T))                   \
  CUDA_ON_CPU_VECTOR3(NAME##3, T)                                  \
  CUDA_ON_CPU_VECTOR4(NAME##4, T, sizeof(T) == 8 ? 16 : 4 * sizeof(T))

using uint = unsigned int;
using uchar = unsigned char;
using ushort = unsigned short;
CUDA_ON_CPU_VECTORS(char, signed char)
CUDA_ON_CPU_VECTORS(uchar, unsigned char)
CUDA_ON_CPU_VECTORS(short, short)
CUDA_ON_CPU_VECTORS(ushort, unsigned short)
CUDA_ON_CPU_VECTORS(int, int)
CUDA_ON_CPU_VECTORS(uint, unsigned int)
CUDA_ON_CPU_VECTORS(longlong, long long)
CUDA_ON_CPU_VECTORS(ulonglong, unsigned long long)
CUDA_ON_CPU_VECTORS(float, float)
CUDA_ON_CPU_VECTORS(double, double)
CUDA_ON_CPU_VECTOR2(half2, half, 4)
CUDA_ON_CPU_VECTOR4(half4, half, 8)
CUDA_ON_CPU_VECTOR2(nv_bfloat162, nv_bfloat16, 4)
CUDA_ON_CPU_VECTOR4(nv_bfloat164, nv_bfloat16, 8)
using __half2 = half2;
using __nv_bfloat162 = nv_bfloat162;

inline unsigned __pack_half2(half x, half y) { return unsigned(y.bits) << 16 | x.bits; }
inline unsigned __pack_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return unsigned(y.bits) << 16 | x.bits; }
