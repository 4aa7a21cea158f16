// Fibers: stacks on one machine thread that hand over to each other explicitly.
#pragma once

#include <cstddef>

namespace cuda_host {

struct Fiber {
  void *stack_pointer = nullptr;
  char *stack = nullptr;
  size_t stack_size = 0;
  // AddressSanitizer's record of the stack.
  void *fake_stack = nullptr;
};

// A fiber that will run `entry`, which must never return. `colour` shifts the stack within its pages, so that the hot
// ends of many stacks do not fall on the same cache sets. A fiber whose body was abandoned may be prepared again.
void prepare(Fiber &fiber, void (*entry)(), unsigned colour);

// Makes `fiber` stand for the machine thread that calls.
void adopt(Fiber &fiber);

// Runs `to` until it hands back to `from`.
void hand_over(Fiber &from, Fiber &to);

// Leaves a signal handler so that, when it returns, `to` runs and the interrupted code never does. False where this
// machine cannot.
bool leave_signal(void *signal_context, Fiber &to);

} // namespace cuda_host
