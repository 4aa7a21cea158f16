// Runs a launch: blocks one after another, the threads of a block as fibers that change places where they wait.
#pragma once

#include "kernel/abi.hpp"

namespace cuda_host {

struct Launch {
  const Kernel *kernel;
  Index grid, block;
  unsigned dynamic_shared;
  void **params;
};

// Runs every thread of the launch. Returns 0, or the driver's error for what went wrong, explained on stderr.
int run(const Launch &launch);

// Called by the thread that runs: abandons the launch, which returns `error`.
[[noreturn]] void fail_launch(int error);

} // namespace cuda_host
