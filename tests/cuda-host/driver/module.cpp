// A module image is two lines of text: `//HOSTSO <path of a shared library>` and `//CODE <ptx|cubin> <NVRTC version>
// <architecture>`, the second so that an old driver or another device refuses it as the real ones do.
#include "module.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <map>

#include "memory.hpp"
#include "scheduler.hpp"

namespace cuda_host {

struct LoadedModule {
  void *library;
  const Module *table;
  Context *context;
  std::map<std::string, Function> functions;
};

namespace {

std::set<LoadedModule *> &modules = *new std::set<LoadedModule *>;
std::set<const void *> &functions = *new std::set<const void *>;

// Whether this device and driver accept code built by `version` (10 x major + minor) for `capability`.
int accepts(bool ptx, int version, int capability) {
  int driver = options().driver_version / 1000 * 10 + options().driver_version % 1000 / 10;
  int device = options().capability;
  if (ptx) {
    // Text is compiled by the driver, for this device or a newer one, but it must know the text's version.
    if (version > driver) {
      explain("PTX of CUDA %d.%d on a driver for %d.%d", version / 10, version % 10, driver / 10, driver % 10);
      return UNSUPPORTED_PTX_VERSION;
    }
    return capability <= device ? SUCCESS : NO_BINARY_FOR_GPU;
  }
  // Binary code runs on its own generation, on its revision or a later one.
  return capability / 10 == device / 10 && capability <= device ? SUCCESS : NO_BINARY_FOR_GPU;
}

// Alignment of every parameter copy: the largest a kernel parameter has.
constexpr size_t parameter_slot = 16;

struct alignas(parameter_slot) Aligned {
  char bytes[parameter_slot];
};

// Copies of a launch's arguments: the caller's are gone when a stream or a graph runs it.
struct Arguments {
  std::vector<std::vector<Aligned>> values;
  std::vector<void *> pointers;

  Arguments(const Kernel &kernel, void **params) {
    for (unsigned i = 0; i < kernel.params; ++i) {
      values.emplace_back((kernel.sizes[i] + parameter_slot - 1) / parameter_slot);
      memcpy(values.back().data(), params[i], kernel.sizes[i]);
    }
    for (auto &value : values)
      pointers.push_back(value.data());
  }
};

int execute(const Function &function, const Launch &launch, Arguments &arguments) {
  const Kernel &kernel = *function.kernel;
  for (unsigned i = 0; i < kernel.params; ++i) {
    void *pointer;
    memcpy(&pointer, arguments.pointers[i], sizeof pointer);
    if (kernel.pointers[i] && !memory::known(pointer)) {
      explain("kernel %s: argument %u, %p, is not device memory", kernel.name, i, pointer);
      return ILLEGAL_ADDRESS;
    }
  }
  ++counts.launches[kernel.name];
  return run(launch);
}

} // namespace

int load_module(const char *image, LoadedModule **out) {
  char path[4096], kind[8];
  int major, minor, capability;
  if (sscanf(image, "//HOSTSO %4095[^\n]\n//CODE %7s %d.%d %d", path, kind, &major, &minor, &capability) != 5) {
    explain("this image was not made by the stand-in's NVRTC");
    return INVALID_IMAGE;
  }
  if (int error = accepts(strcmp(kind, "ptx") == 0, major * 10 + minor, capability))
    return error;
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    explain("%s", dlerror());
    return FILE_NOT_FOUND;
  }
  auto *table = static_cast<const Module *>(dlsym(library, "cuda_host_module"));
  if (!table || table->abi != abi_version) {
    explain("%s was compiled for another version of the stand-in", path);
    return INVALID_IMAGE;
  }
  auto *module = new LoadedModule{library, table, current, {}};
  for (unsigned i = 0; i < table->count; ++i) {
    Function &f = module->functions[table->kernels[i].name];
    f.kernel = &table->kernels[i];
    f.module = module;
    functions.insert(&f);
  }
  modules.insert(module);
  *out = module;
  return SUCCESS;
}

int unload_module(LoadedModule *module) {
  if (!modules.erase(module))
    return INVALID_HANDLE;
  // Pending launches still run its code, so the library stays mapped; a launch from here on is refused.
  for (auto &[name, f] : module->functions)
    functions.erase(&f);
  return SUCCESS;
}

int find_function(LoadedModule *module, const char *name, Function **out) {
  if (!modules.count(module))
    return INVALID_HANDLE;
  auto found = module->functions.find(name);
  if (found == module->functions.end())
    return NOT_FOUND;
  *out = &found->second;
  return SUCCESS;
}

bool is_function(const void *handle) { return functions.count(handle) != 0; }

int static_shared(const Function &function) {
  const Kernel &k = *function.kernel;
  return int((k.shared_end - k.shared_begin) + (k.common_end - k.common_begin));
}

int launch(Function *function, Index grid, Index block, unsigned dynamic_shared, Stream *stream, void **params) {
  const Kernel &kernel = *function->kernel;
  auto refuse = [&](int error, const char *why) {
    explain("launch of %s, grid (%u, %u, %u), block (%u, %u, %u), %u bytes of shared memory: %s", kernel.name, grid.x,
            grid.y, grid.z, block.x, block.y, block.z, dynamic_shared, why);
    return error;
  };
  if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z)
    return refuse(INVALID_VALUE, "a dimension is zero");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return refuse(INVALID_VALUE, "the grid is larger than (2^31 - 1, 65535, 65535)");
  unsigned long long threads = 1ull * block.x * block.y * block.z;
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || threads > unsigned(max_threads))
    return refuse(INVALID_VALUE, "the block is larger than (1024, 1024, 64) or 1024 threads");
  if (kernel.max_threads && threads > kernel.max_threads)
    return refuse(INVALID_VALUE, "more threads than __launch_bounds__ says");
  // Instrumented shared memory holds red zones, so its size says nothing.
  int fixed = options().sanitizer == Sanitizer::address ? 0 : static_shared(*function);
  if (fixed > shared_per_block || int(dynamic_shared) > function->max_dynamic_shared ||
      fixed + int(dynamic_shared) > std::max(function->max_dynamic_shared, shared_per_block))
    return refuse(INVALID_VALUE, "more shared memory than granted");
  if (kernel.params && !params)
    return refuse(INVALID_VALUE, "no parameters");
  for (unsigned i = 0; i < kernel.params; ++i)
    if (!params[i])
      return refuse(INVALID_VALUE, "a parameter is null");
  auto arguments = std::make_shared<Arguments>(kernel, params);
  log_line("launch %s grid %u %u %u block %u %u %u shared %u stream %u%s", kernel.name, grid.x, grid.y, grid.z, block.x,
           block.y, block.z, dynamic_shared, stream->number, stream->capture ? " captured" : "");
  return enqueue(stream, kernel.name, [function, grid, block, dynamic_shared, arguments] {
    return execute(*function, {function->kernel, grid, block, dynamic_shared, arguments->pointers.data()}, *arguments);
  });
}

} // namespace cuda_host
