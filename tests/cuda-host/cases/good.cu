// Correct kernels of the shapes that generated code has.

// y = gelu(1.5 x + 0.25), tanh form, grid-stride.
extern "C" __global__ void __launch_bounds__(256) elementwise(float* __restrict__ y, const float* __restrict__ x,
                                                              int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    float t = fmaf(1.5f, x[i], 0.25f);
    float u = 0.7978845608f * fmaf(0.044715f * t * t, t, t);
    y[i] = 0.5f * t * (1.0f + tanhf(u));
  }
}

// y[2 i] = x x + 0.25 with two roundings, y[2 i + 1] with one.
extern "C" __global__ void roundings(float* __restrict__ y, const float* __restrict__ x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    y[2 * i] = x[i] * x[i] + 0.25f;
    y[2 * i + 1] = fmaf(x[i], x[i], 0.25f);
  }
}

__device__ __forceinline__ float warp_sum(float v) {
  for (int offset = 16; offset > 0; offset /= 2) {
    v += __shfl_down_sync(0xffffffffu, v, offset);
  }
  return v;
}

// partial[block] = sum of the block's elements: shuffles, one static array, one barrier.
extern "C" __global__ void __launch_bounds__(256) reduce_sum(float* __restrict__ partial, const float* __restrict__ x,
                                                             int n) {
  __shared__ float sums[32];
  float v = 0.0f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    v += x[i];
  }
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) {
    sums[threadIdx.x / 32] = v;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    v = warp_sum(threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) {
      partial[blockIdx.x] = v;
    }
  }
}

// y[row] = softmax(x[row]), a block a row of n / rows columns: dynamic shared memory, tree reductions.
extern "C" __global__ void softmax_row(float* __restrict__ y, const float* __restrict__ x, int n) {
  extern __shared__ __align__(16) float s[];
  int columns = n / gridDim.x;
  const float* row = x + (long long)blockIdx.x * columns;
  float m = __int_as_float(0xff800000);
  for (int i = threadIdx.x; i < columns; i += blockDim.x) {
    m = fmaxf(m, row[i]);
  }
  s[threadIdx.x] = m;
  __syncthreads();
  for (int step = blockDim.x / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) {
      s[threadIdx.x] = fmaxf(s[threadIdx.x], s[threadIdx.x + step]);
    }
    __syncthreads();
  }
  m = s[0];
  __syncthreads();
  float sum = 0.0f;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) {
    sum += expf(row[i] - m);
  }
  s[threadIdx.x] = sum;
  __syncthreads();
  for (int step = blockDim.x / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) {
      s[threadIdx.x] += s[threadIdx.x + step];
    }
    __syncthreads();
  }
  float scale = 1.0f / s[0];
  for (int i = threadIdx.x; i < columns; i += blockDim.x) {
    y[(long long)blockIdx.x * columns + i] = expf(row[i] - m) * scale;
  }
}

// y = y + 3 x, four elements a thread.
extern "C" __global__ void axpy4(float4* __restrict__ y, const float4* __restrict__ x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n / 4) {
    float4 v = x[i];
    float4 w = y[i];
    y[i] = make_float4(fmaf(3.0f, v.x, w.x), fmaf(3.0f, v.y, w.y), fmaf(3.0f, v.z, w.z), fmaf(3.0f, v.w, w.w));
  }
}

// Planes of 20 x 24 transposed through shared memory, one plane for each z of the grid.
extern "C" __global__ void transpose(float* __restrict__ y, const float* __restrict__ x, int n) {
  __shared__ float tile[16][17];
  const int rows = 20, columns = 24;
  x += blockIdx.z * rows * columns;
  y += blockIdx.z * rows * columns;
  int c = blockIdx.x * 16 + threadIdx.x, r = blockIdx.y * 16 + threadIdx.y;
  if (r < rows && c < columns) {
    tile[threadIdx.y][threadIdx.x] = x[r * columns + c];
  }
  __syncthreads();
  int tr = blockIdx.x * 16 + threadIdx.y, tc = blockIdx.y * 16 + threadIdx.x;
  if (tr < columns && tc < rows) {
    y[tr * rows + tc] = tile[threadIdx.x][threadIdx.y];
  }
}

// y[0] = bits of the largest x as an integer, y[1] = how many are positive: atomics whose order does not matter.
extern "C" __global__ void extremes(int* __restrict__ y, const float* __restrict__ x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  float v = i < n ? x[i] : -1.0f;
  if (v > 0.0f) {
    atomicMax(&y[0], __float_as_int(v));
  }
  unsigned votes = __ballot_sync(0xffffffffu, v > 0.0f);
  if (threadIdx.x % 32 == 0) {
    atomicAdd(&y[1], __popc(votes));
  }
}

// y = neighbour within the warp, handed over through shared memory.
extern "C" __global__ void warp_exchange(float* __restrict__ y, const float* __restrict__ x, int n) {
  __shared__ float s[128];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  s[threadIdx.x] = x[i];
  __syncwarp();
  float v = s[threadIdx.x ^ 1];
  __syncwarp();
  s[threadIdx.x] = v + 1.0f;
  y[i] = s[threadIdx.x];
}

// y[0] = sum of x: blocks store partial sums in y[1 + block], and the last to finish adds them in order. The counter
// lies behind them and is zero again afterwards.
extern "C" __global__ void last_block_sums(float* y, const float* x, int n) {
  __shared__ float part[32];
  __shared__ int last;
  unsigned int* turns = reinterpret_cast<unsigned int*>(y + 1 + gridDim.x);
  float sum = 0.0f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    sum += x[i];
  }
  for (int d = 16; d > 0; d /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, d);
  }
  if (threadIdx.x % 32 == 0) {
    part[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float all = 0.0f;
    for (int w = 0; w < blockDim.x / 32; ++w) {
      all += part[w];
    }
    y[1 + blockIdx.x] = all;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(turns, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last == 0) {
    return;
  }
  if (threadIdx.x == 0) {
    atomicExch(turns, 0u);
    float all = 0.0f;
    for (int b = 0; b < gridDim.x; ++b) {
      all += y[1 + b];
    }
    y[0] = all;
  }
}
