// Turns a kernel's memory fault into the driver's error instead of the end of the process.
#pragma once

#include <string>

#include "fiber.hpp"

namespace cuda_host::fault {

// While kernels run: a fault on a fiber, for which `in_kernel` is true, continues on `host`.
void begin(const bool &in_kernel, Fiber &host);
void end();
bool happened();
// The driver's error for the fault that happened, explained as having done so at `place`.
int error(const std::string &place);

} // namespace cuda_host::fault
