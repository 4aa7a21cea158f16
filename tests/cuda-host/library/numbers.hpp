// Arithmetic and memory as the stand-ins of NVIDIA's libraries have them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "driver/driver.hpp"
#include "driver/memory.hpp"

// Present when the address sanitizer is loaded.
extern "C" void *__asan_region_is_poisoned(void *, size_t) __attribute__((weak));

namespace library {

// To the nearest number with `drop` bits less, where 13 is TF32 and 16 bf16; ties away from zero and to even, as the plan's
// own kernels have it.
inline float rounded(float x, unsigned drop) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (!drop || (bits & 0x7f800000u) == 0x7f800000u)
    return x;
  bits += drop == 13 ? 1u << (drop - 1) : (1u << (drop - 1)) - 1 + (bits >> drop & 1);
  bits &= ~((1u << drop) - 1);
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Whether a block of device memory has all these numbers.
inline bool lies_in_memory(const char *name, const float *at, size_t count) {
  return cuda_host::memory::check(name, reinterpret_cast<CUdeviceptr>(at), count * sizeof(float));
}

// Whether numbers that lie together touch something that a test guards.
inline bool guarded(const float *at, size_t count) {
  return __asan_region_is_poisoned && __asan_region_is_poisoned(const_cast<float *>(at), count * sizeof(float));
}

// Sums of many terms as blocks of threads make them: sums of runs, then their sum, so that fewer terms are rounded against
// a large sum.
class Sum {
public:
  void add(float a, float b) {
    part += a * b;
    if (++terms % run == 0)
      total += part, part = 0;
  }
  float value() const { return total + part; }

private:
  static constexpr size_t run = 256;
  float total = 0, part = 0;
  size_t terms = 0;
};

} // namespace library
