// A convolution as the library sees it, and how its result is stored.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cudnn {

// Of `cudnn_graph.h` and `cudnn_ops.h`.
enum Status : int {
  SUCCESS = 0,
  NOT_INITIALIZED = 1001,
  BAD_PARAM = 2000,
  NOT_SUPPORTED = 3000,
  INTERNAL_ERROR = 4000,
  EXECUTION_FAILED = 5000,
};
enum Format : int { NCHW = 0, NHWC = 1 };
constexpr int FLOAT = 0;
enum Mode : int { CONVOLUTION = 0, CROSS_CORRELATION = 1 };
enum Math : int { DEFAULT_MATH = 0, TENSOR_OP_MATH = 1, TENSOR_OP_MATH_ALLOW_CONVERSION = 2, FMA_MATH = 3 };
enum Activation : int { RELU = 1, IDENTITY = 5 };
enum class Direction { forward, data, filter };

// Four extents: `N, C, H, W` of a tensor, `K, C, R, S` of a filter.
struct Tensor {
  int extents[4] = {0, 0, 0, 0};
  size_t count() const;
  // Element of a tensor whose channels lie together.
  size_t at(int n, int c, int h, int w) const;
};

struct Filter : Tensor {};

struct Operation {
  int pads[2] = {0, 0}, strides[2] = {1, 1}, dilations[2] = {1, 1};
  int groups = 1;
  int math = DEFAULT_MATH;
};

// `result = activation(alpha convolution + beta result + bias)`, the result being y, x or w by direction.
struct Convolution {
  Direction direction;
  Tensor x, y;
  Filter w;
  Operation operation;
  float *px, *pw, *py;
  float alpha = 1, beta = 0;
  const float *bias = nullptr;
  bool relu = false;
  // Where it works, and bytes of it.
  unsigned char *workspace = nullptr;
  size_t workspace_bytes = 0;
  // Whether terms are added as they are ready: in another order each time.
  bool any_order = false;
};

// Explains what is wrong with the shapes, if anything is.
bool sound(const Tensor &x, const Filter &w, const Operation &operation, const Tensor &y);
// Computes. Returns 0, or the driver's error for what went wrong, explained on stderr. Counted as launches of `name`.
int run(const Convolution &convolution, const char *name);

} // namespace cudnn
