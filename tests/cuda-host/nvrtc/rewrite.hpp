// Turns CUDA source into C++ for the shim.
#pragma once

#include <string>

namespace cuda_host {

struct Rewritten {
  // With the same line numbers as the source, followed by the module's table.
  std::string text;
  // Why the source cannot be taken; empty where it can.
  std::string error;
};

Rewritten rewrite(const std::string &source, const std::string &name);

} // namespace cuda_host
