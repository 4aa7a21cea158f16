// What kernels call to wait for each other: the barrier of a block and the operations of a warp. Both are strict: a
// thread that has returned never arrives, and lanes must agree on mask and place.
#include "block.hpp"
#include "product.hpp"
#include "race.hpp"

namespace cuda_host {
namespace {

// What a lane takes away. What it would take from a lane outside the operation is undefined: NaN shows its use.
unsigned long long lane_result(const Worker &w, const Warp &warp) {
  constexpr unsigned long long undefined = ~0ull;
  unsigned lane = w.slot.linear % warp_lanes;
  if (w.op == WarpOp::sync || w.op == WarpOp::mma_tf32 || w.op == WarpOp::mma_bf16)
    return 0;
  if (w.op == WarpOp::ballot) {
    unsigned votes = 0;
    for (unsigned l = 0; l < warp_lanes; ++l)
      if (w.mask >> l & 1 && warp.lanes[l])
        votes |= unsigned(warp.lanes[l]->value) << l;
    return votes;
  }
  unsigned segment = lane & ~(w.width - 1), end = segment + w.width, source = lane;
  switch (w.op) {
  case WarpOp::shfl:
    source = segment + (w.operand & (w.width - 1));
    break;
  case WarpOp::shfl_up:
    source = lane - segment >= w.operand ? lane - w.operand : lane;
    break;
  case WarpOp::shfl_down:
    source = w.operand < end - lane ? lane + w.operand : lane;
    break;
  default:
    source = (lane ^ w.operand) < end ? lane ^ w.operand : lane;
  }
  return w.mask >> source & 1 && warp.lanes[source] ? warp.lanes[source]->value : undefined;
}

// Lanes of a warp that the block has.
unsigned existing_lanes(unsigned warp) {
  unsigned count = std::min(warp_lanes, block.threads - warp * warp_lanes);
  return count == warp_lanes ? ~0u : (1u << count) - 1;
}

// Lanes that wait and are named by this mask, or name this lane, must wait here with this mask.
void check_agreement(const Warp &warp, unsigned lane, unsigned site, unsigned line, unsigned mask) {
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
}

// Computes every member's result and lets all but `self` go on.
void complete(Warp &warp, unsigned members, Worker *self) {
  unsigned long long results[warp_lanes];
  Worker *released[warp_lanes], **end = released;
  for (unsigned rest = members; rest; rest &= rest - 1)
    results[__builtin_ctz(rest)] = lane_result(*warp.lanes[__builtin_ctz(rest)], warp);
  for (unsigned rest = members; rest; rest &= rest - 1) {
    unsigned l = unsigned(__builtin_ctz(rest));
    warp.lanes[l]->value = results[l];
    if (warp.lanes[l] != self)
      *end++ = warp.lanes[l];
    warp.lanes[l] = nullptr;
  }
  warp.waiting &= ~members;
  release(released, end);
}

} // namespace
} // namespace cuda_host

using namespace cuda_host;

void cuda_host_syncthreads(unsigned site, unsigned line) {
  Worker *self = block.running;
  self->waits = Waits::barrier;
  self->line = line;
  if (block.barrier_count == 0) {
    block.barrier_site = site;
    block.barrier_line = line;
  }
  if (block.barrier_site != site) {
    explain("%s: threads meet at different __syncthreads: line %u and line %u", place().c_str(), block.barrier_line,
            line);
    abandon(LAUNCH_FAILED);
  }
  block.at_barrier[cuda_host_current.slot.linear] = self;
  if (++block.barrier_count == block.threads) {
    block.barrier_count = 0;
    race::barrier();
    release(block.at_barrier.data(), block.at_barrier.data() + block.threads);
  }
  wait();
}

unsigned long long cuda_host_warp(WarpOp op, unsigned site, unsigned line, unsigned mask, unsigned long long value,
                                  unsigned operand, unsigned width) {
  Worker *self = block.running;
  self->slot = cuda_host_current.slot;
  unsigned index = self->slot.linear / warp_lanes, lane = self->slot.linear % warp_lanes;
  Warp &warp = block.warps[index];
  if (!(mask >> lane & 1)) {
    explain("%s: the mask 0x%08x at line %u leaves out the calling lane %u", place().c_str(), mask, line, lane);
    abandon(LAUNCH_FAILED);
  }
  if (width == 0 || width > warp_lanes || (width & (width - 1))) {
    explain("%s: width %u at line %u is not a power of two up to 32", place().c_str(), width, line);
    abandon(LAUNCH_FAILED);
  }
  if (!warp.waiting) {
    warp.mask = mask;
    warp.site = site;
  } else if (warp.mask != mask || warp.site != site) {
    check_agreement(warp, lane, site, line, mask);
  }
  self->waits = Waits::warp;
  self->site = site;
  self->line = line;
  self->op = op;
  self->mask = mask;
  self->value = value;
  self->operand = operand;
  self->width = width;
  warp.lanes[lane] = self;
  warp.waiting |= 1u << lane;
  unsigned members = mask & existing_lanes(index);
  if ((warp.waiting & members) != members) {
    wait();
    return self->value;
  }
  race::meet(index, members);
  if (op == WarpOp::mma_tf32 || op == WarpOp::mma_bf16)
    multiply_add(warp, members, op);
  if (options().order != Order::random) {
    // The last lane goes on at once, the others after it.
    complete(warp, members, self);
    self->waits = Waits::nothing;
    return self->value;
  }
  complete(warp, members, nullptr);
  wait();
  return self->value;
}
