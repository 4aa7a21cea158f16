// The convolution itself, in f32 and in a fixed order, with every access to device memory checked.
#include "convolution.hpp"

#include <unistd.h>
#include <vector>

#include "library/numbers.hpp"

namespace cudnn {
namespace {

using cuda_host::explain;
using library::Sum;

struct Range {
  const char *name;
  const float *at;
  size_t count;
};

bool overlap(const Range &a, const Range &b) { return a.at < b.at + b.count && b.at < a.at + a.count; }

// Whether a tensor is in device memory and touches nothing that is guarded.
bool reachable(const Range &r) {
  if (!library::lies_in_memory(r.name, r.at, r.count))
    return false;
  if (library::guarded(r.at, r.count))
    return explain("cudnn: %s touches guarded memory", r.name), false;
  return true;
}

std::vector<float> operand(const float *at, size_t count, int math) {
  std::vector<float> out(at, at + count);
  if (math != FMA_MATH)
    for (float &x : out)
      x = library::rounded(x, 13);
  return out;
}

// Calls `meet(x, w, y)` for every element of x and of w that meet in an element of y, all given as places. Terms of a result
// come in the order of these loops, or backwards.
template <class Meet> void meetings(const Convolution &c, bool backwards, Meet meet) {
  const int *k = c.w.extents, *in = c.x.extents, *out = c.y.extents;
  const Operation &o = c.operation;
  int outs = k[0] / o.groups, total = out[0] * out[2] * out[3];
  for (int step = 0; step < total; ++step) {
    int pixel = backwards ? total - 1 - step : step;
    int n = pixel / (out[2] * out[3]), p = pixel / out[3] % out[2], q = pixel % out[3];
    for (int tap = 0; tap < k[2] * k[3]; ++tap) {
      int at = backwards ? k[2] * k[3] - 1 - tap : tap, r = at / k[3], s = at % k[3];
      int h = p * o.strides[0] + r * o.dilations[0] - o.pads[0], w = q * o.strides[1] + s * o.dilations[1] - o.pads[1];
      if (h < 0 || h >= in[2] || w < 0 || w >= in[3])
        continue;
      for (int f = 0; f < k[0]; ++f)
        for (int ch = 0; ch < k[1]; ++ch)
          meet(c.x.at(n, f / outs * k[1] + ch, h, w), c.w.at(f, ch, r, s), c.y.at(n, f, p, q));
    }
  }
}

} // namespace

size_t Tensor::count() const {
  size_t product = 1;
  for (int e : extents)
    product *= size_t(e);
  return product;
}

size_t Tensor::at(int n, int c, int h, int w) const {
  return ((size_t(n) * size_t(extents[2]) + size_t(h)) * size_t(extents[3]) + size_t(w)) * size_t(extents[1]) + size_t(c);
}

bool sound(const Tensor &x, const Filter &w, const Operation &o, const Tensor &y) {
  const int *in = x.extents, *k = w.extents, *out = y.extents;
  if (o.groups < 1 || in[1] != k[1] * o.groups || k[0] % o.groups || out[1] != k[0] || in[0] != out[0])
    return explain("cudnn: %d channels, %d filters of %d and %d results do not go together in %d groups", in[1], k[0], k[1],
                   out[1], o.groups),
           false;
  for (int d = 0; d < 2; ++d) {
    int room = in[2 + d] + 2 * o.pads[d] - o.dilations[d] * (k[2 + d] - 1) - 1;
    if (room < 0 || room / o.strides[d] + 1 != out[2 + d])
      return explain("cudnn: windows make %d results, not %d", room / o.strides[d] + 1, out[2 + d]), false;
  }
  return true;
}

int run(const Convolution &c, const char *name) {
  Range x{"x", c.px, c.x.count()}, w{"w", c.pw, c.w.count()}, y{"y", c.py, c.y.count()};
  Range bias{"bias", c.bias, size_t(c.y.extents[1])};
  Range workspace{"workspace", reinterpret_cast<const float *>(c.workspace), c.workspace_bytes / sizeof(float)};
  Range &to = c.direction == Direction::forward ? y : c.direction == Direction::data ? x : w;
  for (const Range *r : {&x, &w, &y})
    if (!reachable(*r))
      return cuda_host::ILLEGAL_ADDRESS;
  if ((c.bias && !reachable(bias)) || (c.workspace_bytes && !reachable(workspace)))
    return cuda_host::ILLEGAL_ADDRESS;
  for (const Range *r : {&x, &w, &y, &workspace})
    if (r != &to && r->count && overlap(*r, to))
      return explain("%s: the result overlaps %s", name, r->name), cuda_host::LAUNCH_FAILED;
  ++cuda_host::counts.launches[name];
  // What lay in the workspace is gone.
  for (size_t i = 0; i < c.workspace_bytes; ++i)
    c.workspace[i] = 0xff;
  // In another order from process to process, too.
  static unsigned runs = unsigned(getpid());
  bool backwards = c.any_order && ++runs % 2;
  std::vector<Sum> sums(to.count);
  // The result's own numbers are not among the operands.
  auto numbers = [&](const Range &r) { return &r == &to ? std::vector<float>() : operand(r.at, r.count, c.operation.math); };
  std::vector<float> vx = numbers(x), vw = numbers(w), vy = numbers(y);
  meetings(c, backwards, [&](size_t ix, size_t iw, size_t iy) {
    switch (c.direction) {
    case Direction::forward: return sums[iy].add(vx[ix], vw[iw]);
    case Direction::data: return sums[ix].add(vw[iw], vy[iy]);
    case Direction::filter: return sums[iw].add(vx[ix], vy[iy]);
    }
  });
  float *result = c.direction == Direction::forward ? c.py : c.direction == Direction::data ? c.px : c.pw;
  for (size_t i = 0; i < to.count; ++i) {
    float value = c.alpha * sums[i].value();
    if (c.beta != 0)
      value += c.beta * result[i];
    if (c.bias)
      value += c.bias[i % size_t(c.y.extents[1])];
    if (c.relu && !(value > 0))
      value = 0;
    result[i] = value;
  }
  return 0;
}

} // namespace cudnn
