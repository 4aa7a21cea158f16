// Runs the host compiler.
#pragma once

#include <string>
#include <vector>

namespace cuda_host {

struct Compiled {
  // Shared library; empty where compilation failed.
  std::string path;
  std::string log;
};

// Compiles rewritten source, or finds it compiled before. `arguments` are further ones for the compiler.
Compiled compile(const std::string &text, const std::string &name, const std::vector<std::string> &arguments);

} // namespace cuda_host
