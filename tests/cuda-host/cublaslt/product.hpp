// A product as the library sees it: column-major matrices, what is done with the result, and how it is summed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cublaslt {

// Of `cublas_api.h` and `cublasLt.h`.
enum Status : int {
  SUCCESS = 0,
  NOT_INITIALIZED = 1,
  INVALID_VALUE = 7,
  EXECUTION_FAILED = 13,
  INTERNAL_ERROR = 14,
  NOT_SUPPORTED = 15,
};
enum Compute : int { COMPUTE_32F = 68, COMPUTE_32F_FAST_16BF = 75, COMPUTE_32F_FAST_TF32 = 77 };
enum Epilogue : uint32_t { DEFAULT = 1, RELU = 2, BIAS = 4, RELU_BIAS = 6 };
constexpr int R_32F = 0;

struct Layout {
  int type = R_32F;
  uint64_t rows = 0, cols = 0;
  int64_t leading = 0;
  int32_t batch = 1;
  int64_t stride = 0;
};

struct Description {
  int compute = COMPUTE_32F, scale = R_32F;
  int32_t transposed[2] = {0, 0};
  uint32_t epilogue = DEFAULT;
  const float *bias = nullptr;
};

// `d = epilogue(alpha op(a) op(b) + beta c)`.
struct Product {
  Description description;
  Layout a, b, c, d;
  float alpha = 1, beta = 0;
  const float *pa = nullptr, *pb = nullptr, *pc = nullptr;
  float *pd = nullptr;
  // Whether the sum is cut into parts that are added as they are ready: in another order each time.
  bool parts = false;
};

// Explains what is wrong with the shapes, if anything is.
bool sound(const Description &description, const Layout &a, const Layout &b, const Layout &c, const Layout &d);
// Multiplies. Returns 0, or the driver's error for what went wrong, explained on stderr.
int run(const Product &product);

} // namespace cublaslt
