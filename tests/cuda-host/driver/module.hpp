// Modules, functions and launches.
#pragma once

#include <string>

#include "kernel/abi.hpp"
#include "stream.hpp"

namespace cuda_host {

struct LoadedModule;

struct Function {
  const Kernel *kernel;
  LoadedModule *module;
  // Granted by cuFuncSetAttribute; above 48 KiB only then.
  int max_dynamic_shared = 48 << 10;
};

// Limits of the device, as in its attributes.
constexpr int max_threads = 1024, shared_per_block = 48 << 10, shared_optin = 163 << 10;

int load_module(const char *image, LoadedModule **out);
int unload_module(LoadedModule *module);
int find_function(LoadedModule *module, const char *name, Function **out);
bool is_function(const void *handle);
int static_shared(const Function &function);
int launch(Function *function, Index grid, Index block, unsigned dynamic_shared, Stream *stream, void **params);

} // namespace cuda_host
