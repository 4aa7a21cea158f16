// Turns a kernel's memory fault into the driver's error instead of the end of the process.
#pragma once

#include <string>

#include "fiber.hpp"

namespace cuda_host::fault {

// While kernels run: a fault explains itself with `place`, sets `error` and continues on `host`.
void begin(std::string (*place)(), Fiber &host, int &error);
void end();

} // namespace cuda_host::fault
