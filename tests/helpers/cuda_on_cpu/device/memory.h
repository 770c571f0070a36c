// Checked stand-ins for pointers: they know their buffer, and tell reads from writes.
#pragma once
#include <type_traits>

#include "machine.h"

namespace cuda_on_cpu {

#define ALWAYS_INLINE inline __attribute__((always_inline))
// Unrolled kernels have thousands of accesses: inlined, g++ would take minutes for them.
#define NEVER_INLINE __attribute__((noinline))

template <class T, Space S>
struct Pointer;

template <class T>
ALWAYS_INLINE bool accessible(const Buffer& buffer, Space space, int64_t offset, Access access) {
  if (__builtin_expect(uint64_t(offset) >= buffer.bytes || buffer.bytes - offset < sizeof(T), false)) {
    report_out_of_bounds(buffer, space, offset, sizeof(T), access);
    return false;
  }
  if (__builtin_expect(offset % alignof(T) != 0, false)) {
    report_misaligned(buffer, offset, sizeof(T));
    return false;
  }
  return true;
}

template <class T, Space S>
NEVER_INLINE T load_from(const Buffer* buffer, int64_t offset) {
  T value;
  if (!accessible<T>(*buffer, S, offset, Access::read)) {
    memset(static_cast<void*>(&value), 0, sizeof(T));
    return value;
  }
  if (S == Space::shared) shared_read(*buffer, offset, sizeof(T));
  if (S == Space::global && __builtin_expect(buffer->writers != nullptr, false)) {
    global_read(*buffer, offset, sizeof(T));
  }
  memcpy(static_cast<void*>(&value), buffer->data + offset, sizeof(T));
  return value;
}

template <class T, Space S>
NEVER_INLINE void store_to(const Buffer* buffer, int64_t offset, T value) {
  if (!accessible<T>(*buffer, S, offset, Access::write)) return;
  if (S == Space::shared) {
    shared_write(*buffer, offset, sizeof(T), &value);
  } else {
    global_write(*buffer, offset, sizeof(T), &value);
  }
}

template <class T, Space S>
struct Reference {
  const Buffer* buffer;
  int64_t offset;

  ALWAYS_INLINE T load() const { return load_from<T, S>(buffer, offset); }
  ALWAYS_INLINE void store(const T& value) const { store_to<T, S>(buffer, offset, value); }
  ALWAYS_INLINE operator T() const { return load_from<T, S>(buffer, offset); }
  template <class U, class = std::enable_if_t<std::is_arithmetic<U>::value && !std::is_same<U, T>::value>>
  ALWAYS_INLINE explicit operator U() const {
    return U(load());
  }
  ALWAYS_INLINE void operator=(const T& value) const { store_to<T, S>(buffer, offset, value); }
  ALWAYS_INLINE void operator=(const Reference& other) const { store(other.load()); }
  template <Space R>
  ALWAYS_INLINE void operator=(const Reference<T, R>& other) const {
    store(other.load());
  }
  ALWAYS_INLINE Pointer<T, S> operator&() const { return {buffer, offset}; }
  Reference(const Buffer* b, int64_t o) : buffer(b), offset(o) {}
  Reference(const Reference&) = default;
};

template <class T, Space S>
struct Pointer {
  const Buffer* buffer;
  int64_t offset;  // bytes

  ALWAYS_INLINE Reference<T, S> operator*() const { return {buffer, offset}; }
  ALWAYS_INLINE Reference<T, S> operator[](int64_t index) const {
    return {buffer, offset + index * int64_t(sizeof(T))};
  }
  ALWAYS_INLINE Pointer operator+(int64_t index) const { return {buffer, offset + index * int64_t(sizeof(T))}; }
  ALWAYS_INLINE Pointer operator-(int64_t index) const { return *this + -index; }
  ALWAYS_INLINE bool operator==(const Pointer& o) const { return buffer == o.buffer && offset == o.offset; }
};

// Arrays of a thread. They begin as 0xFF bytes (NaN), so that a value nobody set shows.
template <class T>
struct LocalPointer {
  char* data;
  int64_t bytes, offset;
  const char* name;

  ALWAYS_INLINE T& operator[](int64_t index) const {
    const int64_t at = offset + index * int64_t(sizeof(T));
    if (__builtin_expect(uint64_t(at) > uint64_t(bytes - int64_t(sizeof(T))) || bytes < int64_t(sizeof(T)), false)) {
      static T nowhere;
      report_local_out_of_bounds(name, at / int64_t(sizeof(T)), bytes / sizeof(T));
      return nowhere;
    }
    if (__builtin_expect(at % alignof(T) != 0, false)) {
      static T nowhere;
      report_local_misaligned(name, at, sizeof(T));
      return nowhere;
    }
    return *reinterpret_cast<T*>(data + at);
  }
  ALWAYS_INLINE T& operator*() const { return (*this)[0]; }
  ALWAYS_INLINE T* operator->() const { return &(*this)[0]; }
  ALWAYS_INLINE LocalPointer operator+(int64_t index) const {
    return {data, bytes, offset + index * int64_t(sizeof(T)), name};
  }
};

template <class T, int64_t N>
struct LocalArray {
  alignas(64) T elements[N];
  const char* name;

  ALWAYS_INLINE explicit LocalArray(const char* array_name) : name(array_name) {
    memset(static_cast<void*>(elements), 0xFF, sizeof(elements));
  }
  ALWAYS_INLINE T& operator[](int64_t index) {
    if (__builtin_expect(uint64_t(index) >= uint64_t(N), false)) {
      static T nowhere;
      report_local_out_of_bounds(name, index, N);
      return nowhere;
    }
    return elements[index];
  }
  ALWAYS_INLINE LocalPointer<T> operator+(int64_t index) {
    return LocalPointer<T>{reinterpret_cast<char*>(elements), sizeof(elements), 0, name} + index;
  }
};

// (U*)p of the generated source
template <class U, class T, Space S>
ALWAYS_INLINE Pointer<U, S> cast_to(const Pointer<T, S>& p) {
  return {p.buffer, p.offset};
}
template <class U, class T>
ALWAYS_INLINE LocalPointer<U> cast_to(const LocalPointer<T>& p) {
  return {p.data, p.bytes, p.offset, p.name};
}
template <class U, class T, int64_t N>
ALWAYS_INLINE LocalPointer<U> cast_to(LocalArray<T, N>& array) {
  return cast_to<U>(array + 0);
}
template <class U, class T>
ALWAYS_INLINE U* cast_to(T* p) {
  return reinterpret_cast<U*>(p);
}

template <class T>
ALWAYS_INLINE Pointer<T, Space::shared> declare_shared(int slot, uint64_t elements, const char* name) {
  return {shared_array(slot, elements * sizeof(T), sizeof(T), name), 0};
}
template <class T>
ALWAYS_INLINE Pointer<T, Space::shared> declare_dynamic_shared(const char* name) {
  return {dynamic_shared_array(sizeof(T), name), 0};
}

template <class T>
using Global = Pointer<T, Space::global>;

}  // namespace cuda_on_cpu
