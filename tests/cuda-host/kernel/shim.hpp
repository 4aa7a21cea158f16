// The CUDA language as host C++: included before every kernel source, after which g++ compiles it. Only what a kernel
// compiled by NVRTC without headers has is here, so a kernel that needs more fails to compile as it would there.
#pragma once
#include "abi.hpp"

#define __CUDACC__ 1
#define __CUDACC_RTC__ 1

// The rewriter turns `extern "C" __global__` into `__global__`: the module's table is how kernels are found.
#define __global__ static
#define __device__ static __attribute__((unused))
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// One section per kernel, so that only a kernel's own shared memory is filled before a block. `used`: it is read and
// written behind the compiler's back, by other threads.
#define CUDA_HOST_SHARED(owner) static __attribute__((section("cuda_shared_" #owner), used))

using uint3 = cuda_host::Index;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

#define threadIdx (cuda_host_current.slot.thread)
#define blockIdx (cuda_host_current.block)
#define blockDim (cuda_host_current.block_dim)
#define gridDim (cuda_host_current.grid_dim)
constexpr int warpSize = 32;

// Vector types, aligned as on the device so that the undefined-behaviour sanitizer sees misaligned accesses.
#define CUDA_HOST_VECTOR(T, name)                                                                                     \
  struct __attribute__((aligned(2 * sizeof(T)))) name##2 { T x, y; };                                                 \
  struct name##3 { T x, y, z; };                                                                                      \
  struct __attribute__((aligned(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16))) name##4 { T x, y, z, w; };                 \
  __device__ inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                               \
  __device__ inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                       \
  __device__ inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_HOST_VECTOR(float, float)
CUDA_HOST_VECTOR(int, int)
CUDA_HOST_VECTOR(unsigned short, ushort)
CUDA_HOST_VECTOR(unsigned char, uchar)
#undef CUDA_HOST_VECTOR
struct __attribute__((aligned(8))) uint2 { unsigned x, y; };
struct __attribute__((aligned(16))) uint4 { unsigned x, y, z, w; };
__device__ inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
__device__ inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
__device__ inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Mathematics: the C library's single-precision functions under their CUDA names. Double precision is left out, so a
// kernel that slips into it does not compile.
extern "C" {
float fmaf(float, float, float) noexcept;
float sqrtf(float) noexcept;
float expf(float) noexcept;
float exp2f(float) noexcept;
float expm1f(float) noexcept;
float logf(float) noexcept;
float log2f(float) noexcept;
float log1pf(float) noexcept;
float tanhf(float) noexcept;
float erff(float) noexcept;
float powf(float, float) noexcept;
float sinf(float) noexcept;
float cosf(float) noexcept;
float floorf(float) noexcept;
float ceilf(float) noexcept;
float truncf(float) noexcept;
float rintf(float) noexcept;
float fabsf(float) noexcept;
float copysignf(float, float) noexcept;
float fmaxf(float, float) noexcept;
float fminf(float, float) noexcept;
float fmodf(float, float) noexcept;
}
__device__ inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __fdividef(x, y) ((x) / (y))
#define __fmaf_rn(x, y, z) fmaf(x, y, z)
#define __fadd_rn(x, y) ((x) + (y))
#define __fsub_rn(x, y) ((x) - (y))
#define __fmul_rn(x, y) ((x) * (y))
#define __fdiv_rn(x, y) ((x) / (y))
#define __fsqrt_rn(x) sqrtf(x)
#define isnan(x) __builtin_isnan(x)
#define isinf(x) __builtin_isinf(x)
#define isfinite(x) __builtin_isfinite(x)

__device__ inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
__device__ inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
__device__ inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
__device__ inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
__device__ inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
__device__ inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
__device__ inline int __popc(unsigned x) { return __builtin_popcount(x); }
__device__ inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
__device__ inline int __ffs(int x) { return __builtin_ffs(x); }
__device__ inline int abs(int x) { return x < 0 ? -x : x; }
#define CUDA_HOST_ORDERED(T)                                                                                          \
  __device__ inline T min(T a, T b) { return b < a ? b : a; }                                                         \
  __device__ inline T max(T a, T b) { return a < b ? b : a; }
CUDA_HOST_ORDERED(int)
CUDA_HOST_ORDERED(unsigned)
CUDA_HOST_ORDERED(long long)
CUDA_HOST_ORDERED(unsigned long long)
#undef CUDA_HOST_ORDERED
__device__ inline float min(float a, float b) { return fminf(a, b); }
__device__ inline float max(float a, float b) { return fmaxf(a, b); }

template <class T> __device__ inline T __ldg(const T *p) { return *p; }

// Synchronisation.
#define __syncthreads() cuda_host_syncthreads(__COUNTER__, __LINE__)
#define __threadfence() cuda_host_threadfence()
#define __threadfence_block()

namespace cuda_host {
template <class T>
__attribute__((always_inline)) inline T lanes(WarpOp op, unsigned site, unsigned line, unsigned mask, T value,
                                              unsigned operand, int width = 32) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "warp operations move 4 or 8 bytes");
  unsigned long long bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = cuda_host_warp(op, site, line, mask, bits, operand, (unsigned)width);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}
} // namespace cuda_host
#define CUDA_HOST_LANES(op, ...) cuda_host::lanes(cuda_host::WarpOp::op, __COUNTER__, __LINE__, __VA_ARGS__)
#define __shfl_sync(...) CUDA_HOST_LANES(shfl, __VA_ARGS__)
#define __shfl_up_sync(...) CUDA_HOST_LANES(shfl_up, __VA_ARGS__)
#define __shfl_down_sync(...) CUDA_HOST_LANES(shfl_down, __VA_ARGS__)
#define __shfl_xor_sync(...) CUDA_HOST_LANES(shfl_xor, __VA_ARGS__)
#define __syncwarp(...) CUDA_HOST_SYNCWARP(__VA_ARGS__ __VA_OPT__(,) 0xffffffffu, 0)
#define CUDA_HOST_SYNCWARP(mask, ...)                                                                                 \
  ((void)cuda_host_warp(cuda_host::WarpOp::sync, __COUNTER__, __LINE__, mask, 0, 0, 32))
#define __ballot_sync(mask, predicate)                                                                                \
  ((unsigned)cuda_host_warp(cuda_host::WarpOp::ballot, __COUNTER__, __LINE__, mask, (predicate) ? 1 : 0, 0, 32))
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0u)
#define __all_sync(mask, predicate) (__ballot_sync(mask, !(predicate)) == 0u)

// The PTX instructions that kernels may contain. The rewriter knows them by their whole text, operands included, and
// puts one of these in the place of the `asm` statement; an instruction it does not know is an error.
namespace cuda_host {
__device__ inline void mma(WarpOp op, unsigned site, unsigned line, float &c0, float &c1, float &c2, float &c3,
                           unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  Fragments f = {{c0, c1, c2, c3}, {a0, a1, a2, a3}, {b0, b1}};
  cuda_host_warp(op, site, line, 0xffffffffu, (unsigned long long)&f, 0, 32);
  c0 = f.c[0], c1 = f.c[1], c2 = f.c[2], c3 = f.c[3];
}
// Ties away from zero: half of the last kept bit is added to the magnitude.
__device__ inline void cvt_tf32(unsigned &to, float from) {
  unsigned bits = __float_as_uint(from);
  to = isnan(from) ? 0x7fffe000u : isinf(from) ? bits : (bits + 0x1000u) & ~0x1fffu;
}
// Ties to even.
__device__ inline unsigned bf16(float from) {
  unsigned bits = __float_as_uint(from);
  return isnan(from) ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
__device__ inline void cvt_bf16x2(unsigned &to, float high, float low) { to = bf16(high) << 16 | bf16(low); }
} // namespace cuda_host
#define CUDA_HOST_PTX_mma_tf32(...) cuda_host::mma(cuda_host::WarpOp::mma_tf32, __COUNTER__, __LINE__, __VA_ARGS__)
#define CUDA_HOST_PTX_mma_bf16(...) cuda_host::mma(cuda_host::WarpOp::mma_bf16, __COUNTER__, __LINE__, __VA_ARGS__)
#define CUDA_HOST_PTX_cvt_tf32(...) cuda_host::cvt_tf32(__VA_ARGS__)
#define CUDA_HOST_PTX_cvt_bf16x2(...) cuda_host::cvt_bf16x2(__VA_ARGS__)

// Atomic operations on integers. Floats are left out: their sums would depend on the order.
#define CUDA_HOST_ATOMICS(T)                                                                                          \
  __device__ __forceinline__ T atomicAdd(T *p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }            \
  __device__ __forceinline__ T atomicSub(T *p, T v) { return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED); }            \
  __device__ __forceinline__ T atomicAnd(T *p, T v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }            \
  __device__ __forceinline__ T atomicOr(T *p, T v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }              \
  __device__ __forceinline__ T atomicExch(T *p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }          \
  __device__ __forceinline__ T atomicCAS(T *p, T expected, T v) {                                                     \
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                          \
    return expected;                                                                                                  \
  }                                                                                                                   \
  __device__ __forceinline__ T atomicMax(T *p, T v) {                                                                 \
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                                     \
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}         \
    return old;                                                                                                       \
  }                                                                                                                   \
  __device__ __forceinline__ T atomicMin(T *p, T v) {                                                                 \
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                                     \
    while (v < old && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}         \
    return old;                                                                                                       \
  }
CUDA_HOST_ATOMICS(int)
CUDA_HOST_ATOMICS(unsigned)
CUDA_HOST_ATOMICS(unsigned long long)
#undef CUDA_HOST_ATOMICS
__device__ __forceinline__ float atomicExch(float *p, float v) {
  return __int_as_float(__atomic_exchange_n((int *)p, __float_as_int(v), __ATOMIC_RELAXED));
}

// The loop around a kernel's body, and its row in the module's table.
namespace cuda_host {
#ifdef __SANITIZE_THREAD__
inline bool next_thread() { return cuda_host_next(); }
#else
inline bool next_thread() {
  Current &c = cuda_host_current;
  if (c.next >= c.end)
    return false;
  c.slot = c.order[c.next++];
  return true;
}
#endif

template <unsigned... I> struct Positions {};
template <class T> constexpr unsigned char is_pointer = 0;
template <class T> constexpr unsigned char is_pointer<T *> = 1;

template <auto Body> struct Entry;
template <class... A, void (*Body)(A...)> struct Entry<Body> {
  static constexpr unsigned count = sizeof...(A);
  static constexpr unsigned sizes[count + 1] = {sizeof(A)..., 0};
  static constexpr unsigned char pointers[count + 1] = {is_pointer<A>..., 0};
  template <unsigned... I> static void loop(void **params, Positions<I...>) {
    do
      Body(*static_cast<A *>(params[I])...);
    while (next_thread());
  }
  static void run(void **params) { loop(params, Positions<__integer_pack(count)...>{}); }
};
} // namespace cuda_host

namespace cuda_host {
constexpr unsigned first_bound() { return 0; }
template <class... Rest> constexpr unsigned first_bound(int threads, Rest...) { return (unsigned)threads; }
} // namespace cuda_host
