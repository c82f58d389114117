// Stands in for CUDA's headers when a kernel is compiled for the emulator by a host compiler.
//
// Every thread of a block is a fiber. The kernel's translation unit is compiled with -fsanitize=thread, but linked with
// simt.cpp instead of the sanitizer's runtime: each load and store then calls the emulator first, which knows every
// buffer to the byte, and who else touched it since the last barrier.
#pragma once
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>

struct dim3 { unsigned x, y, z; constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };
struct uint3 { unsigned x, y, z; };

namespace simt {
struct Place { uint3 thread, block; dim3 block_size, grid_size; };
extern Place* here;
union Value { void* pointer; uint64_t bits; float f; double d; };
typedef void (*Call)(const Value*);
struct Entry { const char* name; Call call; };
extern const Entry kernels[];
extern const unsigned kernel_count;

int barrier(int site, int kind, int predicate);
const uint64_t* meet(unsigned mask, int operation, uint64_t value, int site);
unsigned lane();
unsigned active();
void fence();
void* shared_bytes(unsigned id, size_t bytes, size_t grain);
void* dynamic_shared(size_t grain);
void touch(const volatile void* place, size_t bytes, bool write, bool atomic, void* pc);
void copy(void* to, const void* from, size_t bytes);
void fill(void* to, int value, size_t bytes);
[[noreturn]] void trap(const char* what);

template <typename T> using Bare = std::remove_all_extents_t<T>;
template <typename T> T* shared(unsigned id) { return (T*)shared_bytes(id, sizeof(T), sizeof(Bare<T>)); }
template <typename T> T get(const Value& v) {
  if constexpr (std::is_pointer_v<T>) return (T)v.pointer;
  else if constexpr (std::is_same_v<T, float>) return v.f;
  else if constexpr (std::is_same_v<T, double>) return v.d;
  else return (T)v.bits;
}
template <typename T> uint64_t pack(T v) { uint64_t b = 0; static_assert(sizeof(T) <= 8, "too wide"); __builtin_memcpy(&b, &v, sizeof(T)); return b; }
template <typename T> T unpack(uint64_t b) { T v; __builtin_memcpy(&v, &b, sizeof(T)); return v; }
}  // namespace simt

#define threadIdx (simt::here->thread)
#define blockIdx (simt::here->block)
#define blockDim (simt::here->block_size)
#define gridDim (simt::here->grid_size)
constexpr int warpSize = 32;

#define __global__
#define __device__
#define __constant__ const
#define __forceinline__ inline
#define __inline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__
#define __restrict__ __restrict
#define __builtin_assume(...) ((void)0)
#define assert(...) ((__VA_ARGS__) ? (void)0 : simt::trap("an assertion does not hold"))
#define __trap() simt::trap("the kernel traps itself")
#define memcpy simt::copy
#define memset simt::fill

#define __syncthreads() ((void)simt::barrier(__LINE__, 0, 0))
#define __syncthreads_count(p) simt::barrier(__LINE__, 1, !!(p))
#define __syncthreads_and(p) simt::barrier(__LINE__, 2, !!(p))
#define __syncthreads_or(p) simt::barrier(__LINE__, 3, !!(p))
inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() {}
inline void __threadfence_system() { simt::fence(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::meet(mask, 1, 0, 0); }
inline unsigned __activemask() { return simt::active(); }

template <typename T> T __shfl_sync(unsigned m, T v, int from, int width = 32) {
  unsigned l = simt::lane(); const uint64_t* g = simt::meet(m, 2, simt::pack(v), width);
  unsigned source = (l & ~(unsigned)(width - 1)) + ((unsigned)from & (width - 1));
  return simt::unpack<T>(g[source]);
}
template <typename T> T __shfl_up_sync(unsigned m, T v, unsigned delta, int width = 32) {
  unsigned l = simt::lane(); const uint64_t* g = simt::meet(m, 3, simt::pack(v), width);
  int source = (int)l - (int)delta;
  return source < (int)(l & ~(unsigned)(width - 1)) ? v : simt::unpack<T>(g[source]);
}
template <typename T> T __shfl_down_sync(unsigned m, T v, unsigned delta, int width = 32) {
  unsigned l = simt::lane(); const uint64_t* g = simt::meet(m, 4, simt::pack(v), width);
  unsigned source = l + delta;
  return source > (l | (unsigned)(width - 1)) ? v : simt::unpack<T>(g[source]);
}
template <typename T> T __shfl_xor_sync(unsigned m, T v, int bits, int width = 32) {
  unsigned l = simt::lane(); const uint64_t* g = simt::meet(m, 5, simt::pack(v), width);
  unsigned source = l ^ (unsigned)bits;
  return source > (l | (unsigned)(width - 1)) ? v : simt::unpack<T>(g[source]);
}
namespace simt {
template <typename T, typename F> T reduced(unsigned m, T v, int op, F f) {
  const uint64_t* g = meet(m, op, pack(v), 0); bool any = false; T r = v;
  for (int i = 0; i < 32; ++i) if (m >> i & 1) { r = any ? f(r, unpack<T>(g[i])) : unpack<T>(g[i]); any = true; }
  return r;
}
}
inline unsigned __ballot_sync(unsigned m, int p) {
  const uint64_t* g = simt::meet(m, 6, !!p, 0); unsigned r = 0;
  for (int i = 0; i < 32; ++i) if (m >> i & 1 && g[i]) r |= 1u << i;
  return r;
}
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, p) == m; }
template <typename T> unsigned __match_any_sync(unsigned m, T v) {
  const uint64_t* g = simt::meet(m, 7, simt::pack(v), 0); unsigned r = 0; uint64_t b = simt::pack(v);
  for (int i = 0; i < 32; ++i) if (m >> i & 1 && g[i] == b) r |= 1u << i;
  return r;
}
template <typename T> T __reduce_add_sync(unsigned m, T v) { return simt::reduced(m, v, 8, [](T a, T b) { return T(a + b); }); }
template <typename T> T __reduce_max_sync(unsigned m, T v) { return simt::reduced(m, v, 9, [](T a, T b) { return a > b ? a : b; }); }
template <typename T> T __reduce_min_sync(unsigned m, T v) { return simt::reduced(m, v, 10, [](T a, T b) { return a < b ? a : b; }); }
inline unsigned __reduce_or_sync(unsigned m, unsigned v) { return simt::reduced(m, v, 11, [](unsigned a, unsigned b) { return a | b; }); }
inline unsigned __reduce_and_sync(unsigned m, unsigned v) { return simt::reduced(m, v, 12, [](unsigned a, unsigned b) { return a & b; }); }

// Atomics: one fiber runs at a time, so a plain update is indivisible; the emulator is told that it was meant to be.
namespace simt {
template <typename T, typename F> __attribute__((no_sanitize_thread, noinline)) T update(T* p, F f) {
  touch(p, sizeof(T), true, true, __builtin_return_address(0)); T old = *p; *p = f(old); return old;
}
}
template <typename T> T atomicAdd(T* p, std::common_type_t<T> v) { return simt::update(p, [v](T a) { return T(a + v); }); }
template <typename T> T atomicSub(T* p, std::common_type_t<T> v) { return simt::update(p, [v](T a) { return T(a - v); }); }
template <typename T> T atomicMax(T* p, std::common_type_t<T> v) { return simt::update(p, [v](T a) { return a > v ? a : T(v); }); }
template <typename T> T atomicMin(T* p, std::common_type_t<T> v) { return simt::update(p, [v](T a) { return a < v ? a : T(v); }); }
template <typename T> T atomicExch(T* p, std::common_type_t<T> v) { return simt::update(p, [v](T) { return T(v); }); }
template <typename T> T atomicAnd(T* p, std::common_type_t<T> v) { return simt::update(p, [v](T a) { return T(a & v); }); }
template <typename T> T atomicOr(T* p, std::common_type_t<T> v) { return simt::update(p, [v](T a) { return T(a | v); }); }
template <typename T> T atomicXor(T* p, std::common_type_t<T> v) { return simt::update(p, [v](T a) { return T(a ^ v); }); }
template <typename T> T atomicCAS(T* p, std::common_type_t<T> was, std::common_type_t<T> v) { return simt::update(p, [was, v](T a) { return a == was ? T(v) : a; }); }
inline unsigned atomicInc(unsigned* p, unsigned most) { return simt::update(p, [most](unsigned a) { return a >= most ? 0u : a + 1; }); }
inline unsigned atomicDec(unsigned* p, unsigned most) { return simt::update(p, [most](unsigned a) { return a == 0 || a > most ? most : a - 1; }); }

// Vector types.
#define SIMT_VECTOR(T, N, A) \
  struct alignas(A) N##1 { T x; }; struct alignas(2 * A) N##2 { T x, y; }; struct N##3 { T x, y, z; }; \
  struct alignas(4 * A <= 16 ? 4 * A : 16) N##4 { T x, y, z, w; }; \
  inline N##2 make_##N##2(T x, T y) { return {x, y}; } inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; } \
  inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTOR(float, float, 4)
SIMT_VECTOR(double, double, 8)
SIMT_VECTOR(int, int, 4)
SIMT_VECTOR(short, short, 2)
SIMT_VECTOR(signed char, char, 1)
SIMT_VECTOR(unsigned char, uchar, 1)
SIMT_VECTOR(unsigned short, ushort, 2)
SIMT_VECTOR(long long, longlong, 8)
struct alignas(8) uint2 { unsigned x, y; }; struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <typename T> T __ldg(const T* p) { return *p; }
template <typename T> T __ldcg(const T* p) { return *p; }
template <typename T> T __ldca(const T* p) { return *p; }
template <typename T> T __ldcs(const T* p) { return *p; }
template <typename T> T __ldcv(const T* p) { return *p; }
template <typename T> void __stcg(T* p, T v) { *p = v; }
template <typename T> void __stcs(T* p, T v) { *p = v; }
template <typename T> void __stwt(T* p, T v) { *p = v; }

// Arithmetic.
template <typename A, typename B> constexpr auto max(A a, B b) -> std::common_type_t<A, B> { using T = std::common_type_t<A, B>; return T(a) > T(b) ? T(a) : T(b); }
template <typename A, typename B> constexpr auto min(A a, B b) -> std::common_type_t<A, B> { using T = std::common_type_t<A, B>; return T(a) < T(b) ? T(a) : T(b); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return x < 0 ? 0.0f : x > 1 ? 1.0f : x == x ? x : 0.0f; }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
inline float sinpif(float x) { return (float)sin(3.14159265358979323846 * x); }
inline float cospif(float x) { return (float)cos(3.14159265358979323846 * x); }
inline int __float2int_rn(float x) { return (int)rintf(x); }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline int __float2int_ru(float x) { return (int)ceilf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __int_as_float(int x) { return simt::unpack<float>((uint32_t)x); }
inline float __uint_as_float(unsigned x) { return simt::unpack<float>(x); }
inline int __float_as_int(float x) { return (int)simt::pack(x); }
inline unsigned __float_as_uint(float x) { return (unsigned)simt::pack(x); }
inline long long __double_as_longlong(double x) { return (long long)simt::pack(x); }
inline double __longlong_as_double(long long x) { return simt::unpack<double>((uint64_t)x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) { unsigned r = 0; for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i); return r; }
inline int __mul24(int a, int b) { return (int)((unsigned)((a << 8) >> 8) * (unsigned)((b << 8) >> 8)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s) { s &= 31; return s ? hi << s | lo >> (32 - s) : hi; }
inline int __dp4a(int a, int b, int c) { for (int i = 0; i < 4; ++i) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i); return c; }
#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_PI_F 3.141592654f
#include "simt_half.h"
