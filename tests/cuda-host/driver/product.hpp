// Products of a warp on tensor cores.
#pragma once

#include "block.hpp"

namespace cuda_host {

// `c += a b` of all lanes that wait; fails the launch where a lane is missing or an operand is not of the format.
void multiply_add(Warp &warp, unsigned members, WarpOp op);

} // namespace cuda_host
