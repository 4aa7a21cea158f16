// One mistake each, for the tests that prove every detector fires. All are launched as kernel(out, x, n).

// One element past the end is written.
extern "C" __global__ void past_global(float* out, const float* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    out[i + 1] = 1.0f;
  }
}

extern "C" __global__ void past_static_shared(float* out, const float* x, int n) {
  __shared__ float s[128];
  s[threadIdx.x + 1] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x / 2 + 1];
}

// The same through a pointer whose extent the compiler does not know.
extern "C" __global__ void past_shared_pointer(float* out, const float* x, int n) {
  __shared__ float s[128];
  float* p = n < 0 ? out : s;
  p[threadIdx.x + 1] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = p[threadIdx.x / 2 + 1];
}

extern "C" __global__ void past_dynamic_shared(float* out, const float* x, int n) {
  extern __shared__ float s[];
  s[threadIdx.x + 1] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x / 2 + 1];
}

// Four floats are loaded from an address that is no multiple of 16 bytes.
extern "C" __global__ void misaligned(float* out, const float* x, int n) {
  const float4* quads = reinterpret_cast<const float4*>(x + 1);
  float4 v = quads[threadIdx.x % 8];
  out[threadIdx.x] = v.x + v.w;
}

// A position that does not fit 32 bits.
extern "C" __global__ void overflow(float* out, const float* x, int n) {
  int row = (int)threadIdx.x * 20000000;
  out[threadIdx.x] = x[row % n < 0 ? 0 : row % n];
}

extern "C" __global__ void uninitialised_shared(float* out, const float* x, int n) {
  __shared__ float s[256];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x + 128];
}

extern "C" __global__ void uninitialised_dynamic(float* out, const float* x, int n) {
  extern __shared__ float s[];
  out[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void missing_barrier(float* out, const float* x, int n) {
  __shared__ float s[128];
  s[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = s[127 - threadIdx.x];
}

// Two accesses of one barrier interval: a thread reads what its neighbour writes.
extern "C" __global__ void write_after_read(float* out, const float* x, int n) {
  __shared__ float s[129];
  s[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x == 0) {
    s[128] = 0.0f;
  }
  __syncthreads();
  s[threadIdx.x] += s[threadIdx.x + 1];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

// Lanes hand over through shared memory with nothing between.
extern "C" __global__ void missing_syncwarp(float* out, const float* x, int n) {
  __shared__ float s[128];
  s[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}

// A warp operation orders its own lanes and no others.
extern "C" __global__ void syncwarp_for_block(float* out, const float* x, int n) {
  __shared__ float s[128];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 64];
}

extern "C" __global__ void barrier_and_shuffle(float* out, const float* x, int n) {
  float v = x[threadIdx.x];
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    v = __shfl_xor_sync(0xffffffffu, v, 1);
  }
  out[threadIdx.x] = v;
}

extern "C" __global__ void two_barriers(float* out, const float* x, int n) {
  if (threadIdx.x < 64) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void return_before_barrier(float* out, const float* x, int n) {
  if (threadIdx.x >= 100) {
    return;
  }
  __syncthreads();
  out[threadIdx.x] = x[threadIdx.x];
}

// Half of a warp shuffles among itself, the other half among all.
extern "C" __global__ void mask_conflict(float* out, const float* x, int n) {
  float v = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    v = __shfl_xor_sync(0x0000ffffu, v, 1);
  } else {
    v = __shfl_xor_sync(0xffffffffu, v, 1);
  }
  out[threadIdx.x] = v;
}

extern "C" __global__ void own_lane_missing(float* out, const float* x, int n) {
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, x[threadIdx.x], 0);
}

// A value from a lane that takes no part.
extern "C" __global__ void shuffle_from_outside(float* out, const float* x, int n) {
  float v = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    v = __shfl_sync(0x0000ffffu, v, 20);
  }
  out[threadIdx.x] = v;
}

// Blocks add to one element.
extern "C" __global__ void blocks_add(float* out, const float* x, int n) {
  if (threadIdx.x == 0) {
    out[0] += x[blockIdx.x];
  }
}

// A block reads what another writes.
extern "C" __global__ void blocks_read(float* out, const float* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = x[i % n];
  if (i > 0 && threadIdx.x == 0) {
    out[i] += out[i - 1];
  }
}

// An atomic operation in one block, a plain read in another.
extern "C" __global__ void blocks_atomic_and_plain(float* out, const float* x, int n) {
  int* counter = reinterpret_cast<int*>(out);
  if (threadIdx.x == 0) {
    atomicAdd(counter, 1);
    out[1 + blockIdx.x] = (float)*counter;
  }
}

// The last block reads what the others wrote, but no fence publishes it.
extern "C" __global__ void last_block_without_fence(float* out, const float* x, int n) {
  unsigned int* turns = reinterpret_cast<unsigned int*>(out + 1 + gridDim.x);
  __shared__ int last;
  if (threadIdx.x == 1) {
    out[1 + blockIdx.x] = x[blockIdx.x];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(turns, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last == 1 && threadIdx.x == 0) {
    out[0] = out[1];
  }
}

// The fence comes before the other threads' writes are known to be done.
extern "C" __global__ void last_block_without_barrier(float* out, const float* x, int n) {
  unsigned int* turns = reinterpret_cast<unsigned int*>(out + 1 + gridDim.x);
  __shared__ int last;
  if (threadIdx.x == 1) {
    out[1 + blockIdx.x] = x[blockIdx.x];
  }
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(turns, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (last == 1 && threadIdx.x == 0) {
    out[0] = out[1];
  }
}

extern "C" __global__ void null_pointer(float* out, const float* x, int n) {
  float* nowhere = out - (unsigned long long)out / sizeof(float);
  nowhere[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void divide_by_zero(float* out, const float* x, int n) {
  out[threadIdx.x] = x[threadIdx.x / (n - 128)];
}

__device__ float descend(const float* x, int depth) {
  float row[64];
  for (int i = 0; i < 64; ++i) {
    row[i] = x[i] * depth;
  }
  float below = depth == 0 ? 0.0f : descend(x, depth - 1);
  return below + row[depth % 64];
}

extern "C" __global__ void stack_overflow(float* out, const float* x, int n) {
  out[threadIdx.x] = descend(x, n * 1000);
}

// Tensor cores ignore the lower bits of a number that was never rounded to TF32.
extern "C" __global__ void unrounded_product(float* out, const float* x, int n) {
  float c[4] = {};
  const unsigned int a = __float_as_uint(x[threadIdx.x]);
  const unsigned int b = __float_as_uint(1.0f);
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a), "r"(a), "r"(a), "r"(a), "r"(b), "r"(b));
  out[threadIdx.x] = c[0];
}

// A product of a warp in which some lanes take no part.
extern "C" __global__ void product_of_half_a_warp(float* out, const float* x, int n) {
  float c[4] = {};
  const unsigned int one = __float_as_uint(1.0f);
  if (threadIdx.x % 32 < 16) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(one), "r"(one), "r"(one), "r"(one), "r"(one), "r"(one));
  }
  out[threadIdx.x] = c[0];
}
