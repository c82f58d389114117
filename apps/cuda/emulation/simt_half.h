// Half and bfloat16 by way of float: every operation rounds its exact float result to nearest even, as the GPU's does.
#pragma once

#define SIMT_SMALL_FLOAT(T, T2, FROM, TO) \
  struct alignas(2) T { uint16_t bits; T() = default; T(float f) : bits(FROM(f)) {} T(double f) : bits(FROM((float)f)) {} \
    T(int f) : bits(FROM((float)f)) {} operator float() const { return TO(bits); } \
    T& operator+=(T b) { return *this = T(float(*this) + float(b)); } T& operator-=(T b) { return *this = T(float(*this) - float(b)); } \
    T& operator*=(T b) { return *this = T(float(*this) * float(b)); } T& operator/=(T b) { return *this = T(float(*this) / float(b)); } }; \
  struct alignas(4) T2 { T x, y; T2() = default; T2(T a, T b) : x(a), y(b) {} }; \
  inline T operator+(T a, T b) { return T(float(a) + float(b)); } inline T operator-(T a, T b) { return T(float(a) - float(b)); } \
  inline T operator*(T a, T b) { return T(float(a) * float(b)); } inline T operator/(T a, T b) { return T(float(a) / float(b)); } \
  inline T operator-(T a) { return T(-float(a)); } \
  inline bool operator<(T a, T b) { return float(a) < float(b); } inline bool operator>(T a, T b) { return float(a) > float(b); } \
  inline bool operator<=(T a, T b) { return float(a) <= float(b); } inline bool operator>=(T a, T b) { return float(a) >= float(b); } \
  inline bool operator==(T a, T b) { return float(a) == float(b); } inline bool operator!=(T a, T b) { return float(a) != float(b); } \
  inline T2 operator+(T2 a, T2 b) { return {a.x + b.x, a.y + b.y}; } inline T2 operator-(T2 a, T2 b) { return {a.x - b.x, a.y - b.y}; } \
  inline T2 operator*(T2 a, T2 b) { return {a.x * b.x, a.y * b.y}; } \
  inline T __hadd(T a, T b) { return a + b; } inline T __hsub(T a, T b) { return a - b; } inline T __hmul(T a, T b) { return a * b; } \
  inline T __hdiv(T a, T b) { return a / b; } inline T __hneg(T a) { return -a; } inline T __habs(T a) { return T(fabsf(float(a))); } \
  inline T __hfma(T a, T b, T c) { return T(fmaf(float(a), float(b), float(c))); } \
  inline T __hmax(T a, T b) { return T(fmaxf(float(a), float(b))); } inline T __hmin(T a, T b) { return T(fminf(float(a), float(b))); } \
  inline bool __hgt(T a, T b) { return a > b; } inline bool __hlt(T a, T b) { return a < b; } inline bool __heq(T a, T b) { return a == b; } \
  inline bool __hge(T a, T b) { return a >= b; } inline bool __hle(T a, T b) { return a <= b; } \
  inline T hexp(T a) { return T(expf(float(a))); } inline T hlog(T a) { return T(logf(float(a))); } inline T hsqrt(T a) { return T(sqrtf(float(a))); } \
  inline T hrsqrt(T a) { return T(1.0f / sqrtf(float(a))); } inline T htanh(T a) { return T(tanhf(float(a))); } \
  inline T2 __hadd2(T2 a, T2 b) { return a + b; } inline T2 __hsub2(T2 a, T2 b) { return a - b; } inline T2 __hmul2(T2 a, T2 b) { return a * b; } \
  inline T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
  inline T2 __hmax2(T2 a, T2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }

namespace simt {
inline uint16_t to_half(float f) { return (uint16_t)pack((_Float16)f); }
inline float from_half(uint16_t b) { return (float)unpack<_Float16>(b); }
inline uint16_t to_bfloat(float f) {
  uint32_t u = (uint32_t)pack(f);
  if (f != f) return (uint16_t)(u >> 16 | 0x40);
  return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
inline float from_bfloat(uint16_t b) { return unpack<float>((uint64_t)b << 16); }
}

SIMT_SMALL_FLOAT(__half, __half2, simt::to_half, simt::from_half)
SIMT_SMALL_FLOAT(__nv_bfloat16, __nv_bfloat162, simt::to_bfloat, simt::from_bfloat)
using half = __half; using half2 = __half2; using nv_bfloat16 = __nv_bfloat16; using nv_bfloat162 = __nv_bfloat162;

inline __half __float2half(float f) { return __half(f); }
inline __half __float2half_rn(float f) { return __half(f); }
inline float __half2float(__half h) { return float(h); }
inline __half __int2half_rn(int i) { return __half((float)i); }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half2 __float2half2_rn(float a) { return {__half(a), __half(a)}; }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 make_half2(__half a, __half b) { return {a, b}; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }
inline float __low2float(__half2 a) { return float(a.x); }
inline float __high2float(__half2 a) { return float(a.y); }
inline float2 __half22float2(__half2 a) { return {float(a.x), float(a.y)}; }
inline __half2 __float22half2_rn(float2 a) { return {__half(a.x), __half(a.y)}; }
inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
inline float __bfloat162float(__nv_bfloat16 h) { return float(h); }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {float(a.x), float(a.y)}; }
