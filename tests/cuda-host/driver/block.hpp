// The running block: its workers, who may go on, and who waits where. Shared by the scheduler, which chooses, and the
// synchronising calls, which wait.
#pragma once

#include <algorithm>
#include <deque>
#include <string>
#include <vector>

#include "driver.hpp"
#include "fiber.hpp"
#include "scheduler.hpp"

namespace cuda_host {

constexpr unsigned warp_lanes = 32;

enum class Waits { nothing, barrier, warp };

// A fiber that runs threads one after another; where it waits it belongs to one.
struct Worker {
  Fiber fiber;
  Slot slot{};
  Waits waits = Waits::nothing;
  unsigned site = 0, line = 0;
  // Warp operation: what the lane brings, and what it takes away.
  unsigned mask = 0, operand = 0, width = 0;
  WarpOp op{};
  unsigned long long value = 0;
};

struct Warp {
  // Lanes that wait at a warp operation, and the mask and site of the first of them.
  unsigned waiting = 0, mask = 0, site = 0;
  Worker *lanes[warp_lanes] = {};
};

struct Block {
  const Launch *launch = nullptr;
  unsigned threads = 0;
  // Threads in the order in which they start; `cuda_host_current` counts how many have.
  std::vector<Slot> order;
  // Where the scheduler itself runs.
  Fiber host;
  std::deque<Worker> workers;
  std::vector<Worker *> idle;
  Worker *running = nullptr;
  bool in_kernel = false;
  // Workers that may go on, the last one first.
  std::vector<Worker *> ready;
  // Workers at the barrier by thread.
  std::vector<Worker *> at_barrier;
  unsigned barrier_count = 0, barrier_site = 0, barrier_line = 0;
  std::vector<Warp> warps;
  Random random{0};
  // What ends the launch.
  int error = 0;
};

extern Block &block;

// Puts items, given in ascending order, in the order the options ask for.
template <class T> void arrange(T *begin, T *end) {
  if (options().order == Order::reverse)
    std::reverse(begin, end);
  if (options().order == Order::random)
    for (size_t i = size_t(end - begin); i > 1; --i)
      std::swap(begin[i - 1], begin[block.random.below(uint32_t(i))]);
}

// Lets workers go on, given by ascending thread. They come before those that already may.
void release(Worker **begin, Worker **end);
// Runs others until somebody releases the worker that calls.
void wait();
// Abandons the block: the launch returns `error`.
[[noreturn]] void abandon(int error);
// The running thread, for messages.
std::string place();

} // namespace cuda_host
