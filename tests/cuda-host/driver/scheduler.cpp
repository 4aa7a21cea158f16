// Runs blocks and chooses who goes on. This file is never instrumented by a sanitizer: a fiber's change of place is not
// an access.
#include "scheduler.hpp"

#include <cstdio>
#include <cstdlib>
#include <map>

#include "block.hpp"
#include "fault.hpp"
#include "memory.hpp"
#include "race.hpp"

__thread cuda_host::Current cuda_host_current;

namespace cuda_host {

Block &block = *new Block;

namespace {

// Kernels see uninitialised memory as NaN.
void poison(const char *begin, const char *end) {
  memory::fill_bytes(reinterpret_cast<CUdeviceptr>(begin), 0xff, size_t(end - begin));
}

// Takes the first thread that has not started.
bool next_slot() {
  Current &c = cuda_host_current;
  if (c.next == unsigned(block.order.size()))
    return false;
  c.slot = block.order[c.next++];
  return true;
}

void work();

Worker *idle_worker() {
  if (block.idle.empty()) {
    block.workers.emplace_back();
    Worker *fresh = &block.workers.back();
    prepare(fresh->fiber, work, unsigned(block.workers.size()) * 5);
    return fresh;
  }
  Worker *worker = block.idle.back();
  block.idle.pop_back();
  return worker;
}

// Who goes on, or an idle worker for a thread that starts. Random order draws between the two, and who.
Worker *pick() {
  bool can_start = cuda_host_current.next < unsigned(block.order.size());
  bool resume = !block.ready.empty();
  if (options().order == Order::random && resume) {
    resume = !can_start || block.random.below(2);
    std::swap(block.ready.back(), block.ready[block.random.below(uint32_t(block.ready.size()))]);
  }
  if (resume) {
    Worker *worker = block.ready.back();
    block.ready.pop_back();
    return worker;
  }
  return next_slot() ? idle_worker() : nullptr;
}

// Hands over to whoever is next, or to the scheduler where nobody can go on.
void hand_on(Worker *self) {
  Worker *next = pick();
  if (next)
    next->waits = Waits::nothing;
  if (next == self)
    return;
  block.running = next;
  hand_over(self->fiber, next ? next->fiber : block.host);
}

void work() {
  for (;;) {
    block.launch->kernel->run(block.launch->params);
    Worker *self = block.running;
    block.idle.push_back(self);
    // Itself, where it is the idle worker that is picked.
    hand_on(self);
    block.running = self;
  }
}

// Nobody can go on, yet somebody waits: says who waits where.
int divergence() {
  std::map<std::pair<Waits, unsigned>, unsigned> places;
  unsigned waiting = 0;
  for (Worker &w : block.workers)
    if (w.waits != Waits::nothing) {
      ++places[{w.waits, w.line}];
      ++waiting;
    }
  std::string text;
  for (auto &[where, count] : places)
    text += std::to_string(count) + " wait at " +
            (where.first == Waits::barrier ? "__syncthreads" : "a warp operation") + " (line " +
            std::to_string(where.second) + "), ";
  const Index &b = cuda_host_current.block;
  explain("barrier divergence in kernel %s, block (%u, %u, %u): of %u threads, %s%u returned",
          block.launch->kernel->name, b.x, b.y, b.z, block.threads, text.c_str(), block.threads - waiting);
  return LAUNCH_FAILED;
}

int run_block(const Index &index) {
  Current &c = cuda_host_current;
  const Kernel &k = *block.launch->kernel;
  c.block = index;
  c.order = block.order.data();
  c.next = 0;
  // The loop inside a kernel starts threads itself, except in random order, where every start is drawn.
  c.end = options().order == Order::random ? 0 : unsigned(block.order.size());
  char *dynamic = static_cast<char *>(c.dynamic_shared);
  poison(k.shared_begin, k.shared_end);
  poison(k.common_begin, k.common_end);
  poison(dynamic, dynamic + block.launch->dynamic_shared);
  race::begin_block(index);
  block.running = pick();
  block.in_kernel = true;
  hand_over(block.host, block.running->fiber);
  block.in_kernel = false;
  if (fault::happened())
    block.error = fault::error(place());
  if (block.error)
    return block.error;
  return block.idle.size() == block.workers.size() ? SUCCESS : divergence();
}

// Forgets the fibers of an abandoned block.
void reset() {
  block.ready.clear();
  block.barrier_count = 0;
  block.idle.clear();
  block.workers.clear();
}

std::vector<Index> every_index(const Index &extent) {
  std::vector<Index> all;
  all.reserve(size_t(extent.x) * extent.y * extent.z);
  for (unsigned z = 0; z < extent.z; ++z)
    for (unsigned y = 0; y < extent.y; ++y)
      for (unsigned x = 0; x < extent.x; ++x)
        all.push_back({x, y, z});
  return all;
}

} // namespace

void release(Worker **begin, Worker **end) {
  arrange(begin, end);
  block.ready.insert(block.ready.end(), std::make_reverse_iterator(end), std::make_reverse_iterator(begin));
}

void wait() {
  Worker *self = block.running;
  self->slot = cuda_host_current.slot;
  hand_on(self);
  block.running = self;
  cuda_host_current.slot = self->slot;
}

void abandon(int error) {
  block.error = error;
  hand_over(block.running->fiber, block.host);
  abort();
}

std::string place() {
  const Current &c = cuda_host_current;
  char text[400];
  snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", block.launch->kernel->name,
           c.block.x, c.block.y, c.block.z, c.slot.thread.x, c.slot.thread.y, c.slot.thread.z);
  return text;
}

void fail_launch(int error) { abandon(error); }

int run(const Launch &launch) {
  block.launch = &launch;
  block.error = 0;
  block.threads = launch.block.x * launch.block.y * launch.block.z;
  block.warps.assign((block.threads + warp_lanes - 1) / warp_lanes, Warp{});
  block.at_barrier.resize(block.threads);
  block.random.state = options().order_seed;
  block.order.clear();
  for (const Index &thread : every_index(launch.block))
    block.order.push_back({thread, unsigned(block.order.size())});
  std::vector<Index> blocks = every_index(launch.grid);
  arrange(block.order.data(), block.order.data() + block.order.size());
  arrange(blocks.data(), blocks.data() + blocks.size());
  adopt(block.host);
  Current &c = cuda_host_current;
  c.grid_dim = launch.grid;
  c.block_dim = launch.block;
  // Exact size, so that an access past the end meets a sanitizer's red zone.
  c.dynamic_shared = nullptr;
  if (launch.dynamic_shared && posix_memalign(&c.dynamic_shared, 16, launch.dynamic_shared))
    return OUT_OF_MEMORY;
  race::begin_launch(launch, c.dynamic_shared);
  fault::begin(block.in_kernel, block.host);
  int error = 0;
  for (const Index &index : blocks) {
    if (options().order == Order::random)
      arrange(block.order.data(), block.order.data() + block.order.size());
    error = run_block(index);
    if (error)
      break;
  }
  fault::end();
  race::end_launch();
  if (error)
    reset();
  free(c.dynamic_shared);
  c.dynamic_shared = nullptr;
  counts.blocks += blocks.size();
  counts.threads += blocks.size() * block.threads;
  return error;
}

} // namespace cuda_host

bool cuda_host_next() { return cuda_host_current.end && cuda_host::next_slot(); }
