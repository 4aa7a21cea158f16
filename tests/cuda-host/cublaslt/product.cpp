// The product itself, in f32 and in a fixed order, with every access to device memory checked.
#include "product.hpp"

#include <algorithm>
#include <unistd.h>
#include <utility>
#include <vector>

#include "library/numbers.hpp"

namespace cublaslt {
namespace {

using cuda_host::explain;

size_t last(const Layout &l) {
  return size_t(l.batch - 1) * size_t(l.stride) + size_t(l.cols - 1) * size_t(l.leading) + l.rows;
}

// Whether a matrix lies in a block of device memory, and touches nothing that is guarded.
bool reachable(const char *name, const float *at, const Layout &l) {
  if (!library::lies_in_memory(name, at, last(l)))
    return false;
  for (int32_t z = 0; z < l.batch; ++z)
    for (uint64_t j = 0; j < l.cols; ++j) {
      const float *column = at + size_t(z) * size_t(l.stride) + j * size_t(l.leading);
      if (library::guarded(column, l.rows)) {
        explain("%s: column %llu of product %d touches guarded memory", name, (unsigned long long)j, z);
        return false;
      }
    }
  return true;
}

using Ranges = std::vector<std::pair<const float *, const float *>>;

Ranges columns(const float *at, const Layout &l) {
  Ranges out;
  for (int32_t z = 0; z < (l.stride ? l.batch : 1); ++z)
    for (uint64_t j = 0; j < l.cols; ++j) {
      const float *column = at + size_t(z) * size_t(l.stride) + j * size_t(l.leading);
      out.push_back({column, column + l.rows});
    }
  std::sort(out.begin(), out.end());
  return out;
}

bool overlap(const Ranges &a, const Ranges &b) {
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    if (a[i].first < b[j].second && b[j].first < a[i].second)
      return true;
    ++(a[i].second <= b[j].second ? i : j);
  }
  return false;
}

// Results that are written twice, or while an operand is still read.
bool collides(const Product &p) {
  Ranges d = columns(p.pd, p.d);
  for (size_t i = 1; i < d.size(); ++i)
    if (d[i].first < d[i - 1].second) {
      explain("cublasLtMatmul: results overlap each other");
      return true;
    }
  if (p.d.batch > 1 && !p.d.stride) {
    explain("cublasLtMatmul: results of several products lie in one place");
    return true;
  }
  if (overlap(d, columns(p.pa, p.a)) || overlap(d, columns(p.pb, p.b))) {
    explain("cublasLtMatmul: the result overlaps a factor");
    return true;
  }
  if (p.beta != 0 && p.pc != p.pd && overlap(d, columns(p.pc, p.c))) {
    explain("cublasLtMatmul: the result overlaps what is added, but is not in its place");
    return true;
  }
  return false;
}

// Bits that the kind of arithmetic drops of an operand.
unsigned dropped(int compute) {
  return compute == COMPUTE_32F_FAST_TF32 ? 13 : compute == COMPUTE_32F_FAST_16BF ? 16 : 0;
}

// op(x), one product's, as rows of terms: `terms` of each of `lines` rows (or columns) lie together.
std::vector<float> gather(const float *at, const Layout &l, bool along_rows, int compute) {
  std::vector<float> out(l.rows * l.cols);
  for (uint64_t j = 0; j < l.cols; ++j)
    for (uint64_t i = 0; i < l.rows; ++i)
      out[along_rows ? j * l.rows + i : i * l.cols + j] = library::rounded(at[j * size_t(l.leading) + i], dropped(compute));
  return out;
}

// A sum of `count` products, begun at the `first`.
float dot(const float *a, const float *b, size_t count, size_t first) {
  library::Sum sum;
  for (size_t l = 0; l < count; ++l) {
    size_t at = (l + first) % count;
    sum.add(a[at], b[at]);
  }
  return sum.value();
}

} // namespace

bool sound(const Description &o, const Layout &a, const Layout &b, const Layout &c, const Layout &d) {
  for (const Layout *l : {&a, &b, &c, &d}) {
    if (l->type != R_32F || !l->rows || !l->cols || l->batch < 1)
      return explain("cublasLt: a layout is no f32 matrix"), false;
    if (l->leading < int64_t(l->rows))
      return explain("cublasLt: a leading dimension of %lld is less than %llu rows", (long long)l->leading,
                     (unsigned long long)l->rows),
             false;
    if (l->batch != d.batch)
      return explain("cublasLt: layouts have %d and %d products", l->batch, d.batch), false;
  }
  uint64_t m = o.transposed[0] ? a.cols : a.rows, k = o.transposed[0] ? a.rows : a.cols;
  uint64_t kb = o.transposed[1] ? b.cols : b.rows, n = o.transposed[1] ? b.rows : b.cols;
  if (k != kb || m != d.rows || n != d.cols || c.rows != d.rows || c.cols != d.cols)
    return explain("cublasLt: a product of %llu x %llu and %llu x %llu is not %llu x %llu", (unsigned long long)m,
                   (unsigned long long)k, (unsigned long long)kb, (unsigned long long)n, (unsigned long long)d.rows,
                   (unsigned long long)d.cols),
           false;
  if ((o.epilogue & BIAS) && !o.bias)
    return explain("cublasLt: an epilogue with a bias has none"), false;
  return true;
}

int run(const Product &p) {
  const Description &o = p.description;
  bool adds = p.beta != 0;
  Layout bias;
  bias.rows = p.d.rows, bias.cols = 1, bias.leading = int64_t(p.d.rows);
  if (!reachable("cublasLtMatmul: A", p.pa, p.a) || !reachable("cublasLtMatmul: B", p.pb, p.b) ||
      (adds && !reachable("cublasLtMatmul: C", p.pc, p.c)) || !reachable("cublasLtMatmul: D", p.pd, p.d) ||
      ((o.epilogue & BIAS) && !reachable("cublasLtMatmul: bias", o.bias, bias)))
    return cuda_host::ILLEGAL_ADDRESS;
  if (collides(p))
    return cuda_host::LAUNCH_FAILED;
  // In another order from process to process, too.
  static uint64_t runs = uint64_t(getpid());
  ++runs;
  ++cuda_host::counts.launches["cublasLtMatmul"];
  uint64_t k = o.transposed[0] ? p.a.rows : p.a.cols;
  uint64_t first = p.parts ? runs % k : 0;
  for (int32_t z = 0; z < p.d.batch; ++z) {
    auto a = gather(p.pa + size_t(z) * size_t(p.a.stride), p.a, o.transposed[0], o.compute);
    auto b = gather(p.pb + size_t(z) * size_t(p.b.stride), p.b, !o.transposed[1], o.compute);
    const float *c = p.pc + size_t(z) * size_t(p.c.stride);
    float *d = p.pd + size_t(z) * size_t(p.d.stride);
    for (uint64_t j = 0; j < p.d.cols; ++j)
      for (uint64_t i = 0; i < p.d.rows; ++i) {
        float value = p.alpha * dot(&a[i * k], &b[j * k], k, first);
        if (adds)
          value += p.beta * c[j * size_t(p.c.leading) + i];
        if (o.epilogue & BIAS)
          value += o.bias[i];
        if ((o.epilogue & RELU) && !(value > 0))
          value = 0;
        d[j * size_t(p.d.leading) + i] = value;
      }
  }
  return 0;
}

} // namespace cublaslt
