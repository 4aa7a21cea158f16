// Scheduler of one block. This file is never instrumented by a sanitizer: a fiber's change of place is not an access.
#include "scheduler.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "driver.hpp"
#include "fault.hpp"
#include "fiber.hpp"
#include "race.hpp"

__thread cuda_host::Current cuda_host_current;

namespace cuda_host {
namespace {

constexpr unsigned warp_lanes = 32;

enum class Waits { nothing, barrier, warp };

// A fiber that runs threads; where it waits it belongs to one.
struct Worker {
  Fiber fiber;
  Waits waits = Waits::nothing;
  Slot slot{};
  unsigned site = 0, line = 0;
  // Warp operation: what the lane brings, and what it takes away.
  WarpOp op{};
  unsigned mask = 0, operand = 0, width = 0;
  unsigned long long value = 0;
};

struct Warp {
  // Lanes that wait at a warp operation.
  unsigned waiting = 0;
  Worker *lanes[warp_lanes] = {};
};

struct Scheduler {
  const Launch *launch = nullptr;
  Fiber host;
  std::deque<Worker> workers;
  std::vector<Worker *> idle;
  Worker *running = nullptr;
  // Workers that may go on. Lanes released by a warp operation come first: their stacks are warm.
  std::deque<Worker *> ready;
  std::vector<Worker *> at_barrier;
  std::vector<Warp> warps;
  std::vector<Slot> order;
  std::vector<Index> blocks;
  Random random{0};
  unsigned threads = 0;
  int error = 0;
};

Scheduler &s = *new Scheduler;

Random &shuffled() { return s.random; }

template <class T> void arrange(std::vector<T> &items) {
  if (options().order == Order::reverse)
    std::reverse(items.begin(), items.end());
  if (options().order == Order::random)
    for (size_t i = items.size(); i > 1; --i)
      std::swap(items[i - 1], items[shuffled().below(uint32_t(i))]);
}

bool by_thread(const Worker *a, const Worker *b) { return a->slot.linear < b->slot.linear; }

// Kernel threads see uninitialised memory as NaN. A string instruction, because a sanitizer would check memset.
void poison(char *begin, char *end) {
#ifdef __x86_64__
  size_t count = size_t(end - begin);
  asm volatile("rep stosb" : "+D"(begin), "+c"(count) : "a"(0xff) : "memory");
#else
  for (volatile char *p = begin; p != end; ++p)
    *p = char(0xff);
#endif
}

// Abandons the block: the scheduler goes on and reports `error`.
[[noreturn]] void abandon(int error) {
  s.error = error;
  hand_over(s.running->fiber, s.host);
  abort();
}

std::string place() {
  const Current &c = cuda_host_current;
  char text[160];
  snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", s.launch->kernel->name, c.block.x,
           c.block.y, c.block.z, c.slot.thread.x, c.slot.thread.y, c.slot.thread.z);
  return text;
}

// Waits until another fiber makes this one ready.
void wait() {
  Worker *self = s.running;
  self->slot = cuda_host_current.slot;
  hand_over(self->fiber, s.host);
  cuda_host_current.slot = self->slot;
}

void worker_body() {
  for (;;) {
    s.launch->kernel->run(s.launch->params);
    s.idle.push_back(s.running);
    hand_over(s.running->fiber, s.host);
  }
}

Worker *start_worker() {
  if (s.idle.empty()) {
    s.workers.emplace_back();
    Worker *fresh = &s.workers.back();
    prepare(fresh->fiber, worker_body, unsigned(s.workers.size()) * 5);
    return fresh;
  }
  Worker *worker = s.idle.back();
  s.idle.pop_back();
  return worker;
}

// Takes the first thread of `order` that has not started.
bool next_slot() {
  Current &c = cuda_host_current;
  if (c.next == unsigned(s.order.size()))
    return false;
  c.slot = s.order[c.next++];
  return true;
}

// Random order starts a thread or resumes one by the toss of a coin, and resumes any.
Worker *pick() {
  Current &c = cuda_host_current;
  bool can_start = c.next < unsigned(s.order.size());
  if (options().order == Order::random && !s.ready.empty()) {
    if (can_start && shuffled().below(2))
      goto start;
    std::swap(s.ready.front(), s.ready[shuffled().below(uint32_t(s.ready.size()))]);
  }
  if (!s.ready.empty()) {
    Worker *worker = s.ready.front();
    s.ready.pop_front();
    return worker;
  }
start:
  return next_slot() ? start_worker() : nullptr;
}

// Nobody can go on, yet somebody waits: says who waits where.
int divergence() {
  std::map<std::pair<Waits, unsigned>, unsigned> places;
  unsigned waiting = 0;
  for (Worker &w : s.workers)
    if (w.waits != Waits::nothing) {
      ++places[{w.waits, w.line}];
      ++waiting;
    }
  std::string text;
  for (auto &[where, count] : places)
    text += std::to_string(count) + (where.first == Waits::barrier ? " wait at __syncthreads" : " wait at a warp operation") +
            " (line " + std::to_string(where.second) + "), ";
  const Index &b = cuda_host_current.block;
  explain("barrier divergence in kernel %s, block (%u, %u, %u): of %u threads, %s%u returned", s.launch->kernel->name,
          b.x, b.y, b.z, s.threads, text.c_str(), s.threads - waiting);
  return LAUNCH_FAILED;
}

int run_block(const Index &block) {
  Current &c = cuda_host_current;
  const Kernel &k = *s.launch->kernel;
  c.block = block;
  c.order = s.order.data();
  c.next = 0;
  // The loop inside a kernel starts threads itself, except in random order, where the scheduler draws who runs.
  c.end = options().order == Order::random ? 0 : unsigned(s.order.size());
  poison(k.shared_begin, k.shared_end);
  poison(k.common_begin, k.common_end);
  poison(static_cast<char *>(c.dynamic_shared), static_cast<char *>(c.dynamic_shared) + s.launch->dynamic_shared);
  race::begin_block(block);
  for (;;) {
    Worker *worker = pick();
    if (!worker)
      break;
    worker->waits = Waits::nothing;
    s.running = worker;
    hand_over(s.host, worker->fiber);
    s.running = nullptr;
    if (s.error)
      return s.error;
  }
  if (s.idle.size() != s.workers.size())
    return divergence();
  return 0;
}

// Forgets the fibers of an abandoned block.
void reset() {
  s.ready.clear();
  s.at_barrier.clear();
  s.idle.clear();
  s.workers.clear();
}

void number_threads(const Index &block) {
  s.order.clear();
  unsigned linear = 0;
  for (unsigned z = 0; z < block.z; ++z)
    for (unsigned y = 0; y < block.y; ++y)
      for (unsigned x = 0; x < block.x; ++x)
        s.order.push_back({{x, y, z}, linear++});
}

void number_blocks(const Index &grid) {
  s.blocks.clear();
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x)
        s.blocks.push_back({x, y, z});
}

unsigned long long lane_result(const Worker &w, const Warp &warp) {
  constexpr unsigned long long undefined = ~0ull;
  unsigned lane = w.slot.linear % warp_lanes;
  if (w.op == WarpOp::sync)
    return 0;
  if (w.op == WarpOp::ballot) {
    unsigned bits = 0;
    for (unsigned l = 0; l < warp_lanes; ++l)
      if (w.mask >> l & 1 && warp.lanes[l])
        bits |= unsigned(warp.lanes[l]->value) << l;
    return bits;
  }
  unsigned segment = lane & ~(w.width - 1), source = lane;
  switch (w.op) {
  case WarpOp::shfl: source = segment + (w.operand & (w.width - 1)); break;
  case WarpOp::shfl_up: source = lane - segment >= w.operand ? lane - w.operand : lane; break;
  case WarpOp::shfl_down: source = lane + w.operand < segment + w.width ? lane + w.operand : lane; break;
  default: source = (lane ^ w.operand) < segment + w.width ? lane ^ w.operand : lane;
  }
  // What a lane outside the operation would hand over is undefined: NaN shows its use.
  return w.mask >> source & 1 && warp.lanes[source] ? warp.lanes[source]->value : undefined;
}

// Lanes of a warp that the block has.
unsigned existing_lanes(unsigned warp) {
  unsigned count = std::min(warp_lanes, s.threads - warp * warp_lanes);
  return count == warp_lanes ? ~0u : (1u << count) - 1;
}

} // namespace

int run(const Launch &launch) {
  s.launch = &launch;
  s.error = 0;
  s.threads = launch.block.x * launch.block.y * launch.block.z;
  s.warps.assign((s.threads + warp_lanes - 1) / warp_lanes, Warp{});
  s.random.state = options().order_seed;
  number_threads(launch.block);
  number_blocks(launch.grid);
  arrange(s.order);
  arrange(s.blocks);
  adopt(s.host);
  Current &c = cuda_host_current;
  c.grid_dim = launch.grid;
  c.block_dim = launch.block;
  // Exact size, so that an access past the end meets a sanitizer's red zone.
  c.dynamic_shared = nullptr;
  if (launch.dynamic_shared && posix_memalign(&c.dynamic_shared, 16, launch.dynamic_shared))
    return OUT_OF_MEMORY;
  race::begin_launch(launch, c.dynamic_shared);
  fault::begin([] { return s.running ? place() : std::string(); }, s.host, s.error);
  int error = 0;
  for (const Index &block : s.blocks) {
    if (options().order == Order::random)
      arrange(s.order);
    error = run_block(block);
    if (error)
      break;
  }
  fault::end();
  race::end_launch();
  if (error)
    reset();
  free(c.dynamic_shared);
  c.dynamic_shared = nullptr;
  counts.blocks += s.blocks.size();
  counts.threads += s.blocks.size() * s.threads;
  return error;
}

void fail_launch(int error) { abandon(error); }

} // namespace cuda_host

using namespace cuda_host;

bool cuda_host_next() {
  Current &c = cuda_host_current;
  return c.end && next_slot();
}

void cuda_host_syncthreads(unsigned site, unsigned line) {
  Worker *self = s.running;
  self->waits = Waits::barrier;
  self->site = site;
  self->line = line;
  if (!s.at_barrier.empty() && s.at_barrier.front()->site != site) {
    explain("%s: threads meet at different __syncthreads: line %u and line %u", place().c_str(),
            s.at_barrier.front()->line, line);
    abandon(LAUNCH_FAILED);
  }
  s.at_barrier.push_back(self);
  if (s.at_barrier.size() == s.threads) {
    self->slot = cuda_host_current.slot;
    race::barrier();
    std::sort(s.at_barrier.begin(), s.at_barrier.end(), by_thread);
    arrange(s.at_barrier);
    s.ready.insert(s.ready.end(), s.at_barrier.begin(), s.at_barrier.end());
    s.at_barrier.clear();
  }
  wait();
}

unsigned long long cuda_host_warp(WarpOp op, unsigned site, unsigned line, unsigned mask, unsigned long long value,
                                  unsigned operand, unsigned width) {
  Worker *self = s.running;
  unsigned linear = cuda_host_current.slot.linear, index = linear / warp_lanes, lane = linear % warp_lanes;
  Warp &warp = s.warps[index];
  if (!(mask >> lane & 1)) {
    explain("%s: the mask 0x%08x at line %u leaves out the calling lane %u", place().c_str(), mask, line, lane);
    abandon(LAUNCH_FAILED);
  }
  if (width == 0 || width > warp_lanes || (width & (width - 1))) {
    explain("%s: width %u at line %u is not a power of two up to 32", place().c_str(), width, line);
    abandon(LAUNCH_FAILED);
  }
  for (unsigned l = 0; l < warp_lanes; ++l) {
    const Worker *other = warp.waiting >> l & 1 ? warp.lanes[l] : nullptr;
    if (!other || !((mask >> l & 1) || (other->mask >> lane & 1)))
      continue;
    if (other->mask != mask) {
      explain("%s: mask 0x%08x at line %u, but lane %u waits with mask 0x%08x at line %u", place().c_str(), mask, line,
              l, other->mask, other->line);
      abandon(LAUNCH_FAILED);
    }
    if (other->site != site) {
      explain("%s: lanes of a mask meet at different warp operations: line %u and line %u", place().c_str(),
              other->line, line);
      abandon(LAUNCH_FAILED);
    }
  }
  self->waits = Waits::warp;
  self->site = site;
  self->line = line;
  self->op = op;
  self->mask = mask;
  self->value = value;
  self->operand = operand;
  self->width = width;
  self->slot = cuda_host_current.slot;
  warp.lanes[lane] = self;
  warp.waiting |= 1u << lane;
  unsigned members = mask & existing_lanes(index);
  if ((warp.waiting & members) != members) {
    wait();
    return self->value;
  }
  // The last lane computes for all, then goes on at once; in random order it queues with the others.
  unsigned long long results[warp_lanes];
  std::vector<Worker *> released;
  for (unsigned l = 0; l < warp_lanes; ++l)
    if (members >> l & 1)
      results[l] = lane_result(*warp.lanes[l], warp);
  for (unsigned l = 0; l < warp_lanes; ++l)
    if (members >> l & 1) {
      warp.lanes[l]->value = results[l];
      if (warp.lanes[l] != self || options().order == Order::random)
        released.push_back(warp.lanes[l]);
      warp.lanes[l] = nullptr;
    }
  warp.waiting &= ~members;
  race::meet(index, members);
  arrange(released);
  s.ready.insert(s.ready.begin(), released.begin(), released.end());
  if (options().order == Order::random)
    wait();
  else
    self->waits = Waits::nothing;
  return self->value;
}
