// Correct kernels of the shapes that generated code has.

// y = gelu(a x + b), tanh form, grid-stride.
extern "C" __global__ void __launch_bounds__(256) elementwise(float* __restrict__ y, const float* __restrict__ x,
                                                              float a, float b, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    float t = fmaf(a, x[i], b);
    float u = 0.7978845608f * fmaf(0.044715f * t * t, t, t);
    y[i] = 0.5f * t * (1.0f + tanhf(u));
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

// y[row] = softmax(x[row]): dynamic shared memory, tree reductions.
extern "C" __global__ void softmax_row(float* __restrict__ y, const float* __restrict__ x, int columns) {
  extern __shared__ __align__(16) float s[];
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

// y = y + a x, four elements a thread.
extern "C" __global__ void axpy4(float4* __restrict__ y, const float4* __restrict__ x, float a, int quads) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < quads) {
    float4 v = x[i];
    float4 w = y[i];
    y[i] = make_float4(fmaf(a, v.x, w.x), fmaf(a, v.y, w.y), fmaf(a, v.z, w.z), fmaf(a, v.w, w.w));
  }
}

// Transpose of a 3-D grid's planes through shared memory.
extern "C" __global__ void transpose(float* __restrict__ y, const float* __restrict__ x, int rows, int columns) {
  __shared__ float tile[16][17];
  x += (long long)blockIdx.z * rows * columns;
  y += (long long)blockIdx.z * rows * columns;
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

// Largest element, and how many are positive, by integer atomics; the order does not matter to either.
extern "C" __global__ void extremes(int* __restrict__ largest, int* __restrict__ positive, const int* __restrict__ x,
                                    int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  int v = i < n ? x[i] : (int)0x80000000;
  atomicMax(largest, v);
  unsigned votes = __ballot_sync(0xffffffffu, v > 0);
  if (threadIdx.x % 32 == 0) {
    atomicAdd(positive, __popc(votes));
  }
}
