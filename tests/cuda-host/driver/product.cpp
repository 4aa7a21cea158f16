// `mma.sync` with f32 sums: m16n8k8 on TF32 and m16n8k16 on bf16. Lane `4 g + t` holds, of a (16 x K, by rows), b (K x 8)
// and c (16 x 8), the elements that the PTX ISA gives in its figures of warp-level matrix fragments.
#include "product.hpp"

namespace cuda_host {
namespace {

constexpr int rows = 16, cols = 8, most_terms = 16;

// The order in which tensor cores add is not specified; here it is the terms' own, each product rounded once with its sum.
void product(const float a[rows][most_terms], const float b[most_terms][cols], int terms, float c[rows][cols]) {
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < cols; ++n)
      for (int k = 0; k < terms; ++k)
        c[m][n] = __builtin_fmaf(a[m][k], b[k][n], c[m][n]);
}

float number(unsigned bits) { return __builtin_bit_cast(float, bits); }

// TF32 is the upper 19 bits. Hardware ignores the others, so that an operand nobody rounded is cut off.
float tf32(unsigned word, unsigned lane) {
  if (word & 0x1fffu) {
    explain("%s: lane %u multiplies 0x%08x, which is not a TF32 number: it was never rounded", place().c_str(), lane,
            word);
    abandon(LAUNCH_FAILED);
  }
  return number(word);
}

} // namespace

void multiply_add(Warp &warp, unsigned members, WarpOp op) {
  if (members != ~0u) {
    explain("%s: mma.sync needs all 32 lanes of a warp, and here are 0x%08x", place().c_str(), members);
    abandon(LAUNCH_FAILED);
  }
  float a[rows][most_terms], b[most_terms][cols], c[rows][cols];
  Fragments *of[warp_lanes];
  for (unsigned lane = 0; lane < warp_lanes; ++lane) {
    Fragments *f = of[lane] = reinterpret_cast<Fragments *>(warp.lanes[lane]->value);
    unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i)
      c[g + i / 2 * 8][2 * t + i % 2] = f->c[i];
    for (unsigned i = 0; i < 4; ++i) {
      unsigned row = g + i % 2 * 8, word = t + i / 2 * 4;
      if (op == WarpOp::mma_tf32) {
        a[row][word] = tf32(f->a[i], lane);
      } else {
        a[row][2 * word] = number(f->a[i] << 16);
        a[row][2 * word + 1] = number(f->a[i] & 0xffff0000u);
      }
    }
    for (unsigned i = 0; i < 2; ++i) {
      unsigned word = t + i * 4;
      if (op == WarpOp::mma_tf32) {
        b[word][g] = tf32(f->b[i], lane);
      } else {
        b[2 * word][g] = number(f->b[i] << 16);
        b[2 * word + 1][g] = number(f->b[i] & 0xffff0000u);
      }
    }
  }
  product(a, b, op == WarpOp::mma_tf32 ? 8 : 16, c);
  for (unsigned lane = 0; lane < warp_lanes; ++lane)
    for (unsigned i = 0; i < 4; ++i)
      of[lane]->c[i] = c[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}

} // namespace cuda_host
