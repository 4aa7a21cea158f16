// The race detector behind kernels compiled with -fsanitize=thread, whose every access calls __tsan_*. It takes the
// place of the compiler's own run-time library, which knows neither barriers of blocks nor lanes nor that blocks are
// unordered, remembers only four accesses to eight bytes, and cannot live in every process. Other modes never call it.
//
// Two accesses to the same bytes, not both reads and not both atomic, race unless they are ordered:
//   - by one thread doing both,
//   - within a block, by a barrier between them, or by warp operations that lead from one lane to the other,
//   - between blocks of a launch, by what a block publishes and another takes over: all that lies before a barrier,
//     then a fence and an atomic operation of one thread, before an atomic operation on the same address, a fence of
//     the same thread and a barrier, and all that follows. Nothing else orders blocks.
#pragma once

#include "scheduler.hpp"

namespace cuda_host::race {

void begin_launch(const Launch &launch, const void *dynamic_shared);
// Describes the race that ended the launch, if one did.
void end_launch();
void begin_block(const Index &block);
// Every thread of the block has arrived at a barrier.
void barrier();
// The thread that runs passes a fence.
void fence();
// The lanes of a warp have met.
void meet(unsigned warp, unsigned lanes);

} // namespace cuda_host::race
