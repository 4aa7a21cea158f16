// What a compiled kernel module and the driver library share: the running thread's coordinates, the calls a kernel
// makes into the scheduler, and the table a module exports. No system header: kernels are compiled without any, as
// NVRTC compiles them.
#pragma once

namespace cuda_host {

constexpr unsigned abi_version = 2;

struct Index {
  unsigned x, y, z;
};

// A thread of the block: its coordinates and its position in the block, x fastest.
struct Slot {
  Index thread;
  unsigned linear;
};

// State of the thread that runs. `next` and `end` delimit the threads of `order` that have not started; the loop
// around a kernel's body takes them one after another.
struct Current {
  Slot slot;
  Index block, block_dim, grid_dim;
  void *dynamic_shared;
  const Slot *order;
  unsigned next, end;
};

struct Kernel {
  const char *name;
  // Runs the body for the current thread and then for every thread that has not started.
  void (*run)(void **params);
  unsigned params;
  const unsigned *sizes;
  // 1 where the parameter is a pointer.
  const unsigned char *pointers;
  // From __launch_bounds__, 0 without.
  unsigned max_threads;
  // Static shared memory of this kernel alone, and of device functions, which every kernel may call.
  char *shared_begin, *shared_end;
  char *common_begin, *common_end;
};

struct Module {
  unsigned abi;
  unsigned count;
  const Kernel *kernels;
};

// Warp operations; the scheduler moves 64 bits per lane. For products, these are the address of a lane's `Fragments`.
enum class WarpOp : unsigned { sync, shfl, shfl_up, shfl_down, shfl_xor, ballot, activemask, mma_tf32, mma_bf16 };

// What a lane brings to a product of a warp, and takes away in `c`.
struct Fragments {
  float c[4];
  unsigned a[4], b[2];
};

} // namespace cuda_host

extern "C" {
extern __thread cuda_host::Current cuda_host_current __attribute__((tls_model("initial-exec")));

// `site` tells apart the places in the source; `line` is for messages.
void cuda_host_syncthreads(unsigned site, unsigned line);
unsigned long long cuda_host_warp(cuda_host::WarpOp op, unsigned site, unsigned line, unsigned mask,
                                  unsigned long long value, unsigned operand, unsigned width);
void cuda_host_threadfence();
// Moves on to the next thread that has not started; for instrumented kernels, whose accesses must not include these.
bool cuda_host_next();
}
