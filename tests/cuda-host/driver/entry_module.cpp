// Entry points: modules, functions, launches, occupancy.
#include <algorithm>
#include <fstream>
#include <iterator>

#include "driver.hpp"
#include "module.hpp"

using namespace cuda_host;

namespace {

template <class Body> CUresult with_function(const char *name, void *handle, Body body) {
  return entry(name, Needs::context,
               [&] { return is_function(handle) ? int(body(*static_cast<Function *>(handle))) : int(INVALID_HANDLE); });
}

int thread_limit(const Function &f) { return f.kernel->max_threads ? int(f.kernel->max_threads) : max_threads; }

// Blocks that fit one multiprocessor by threads and shared memory; registers are not modelled.
int resident_blocks(const Function &f, int threads, size_t dynamic_shared) {
  int warps = (threads + 31) / 32;
  size_t shared = size_t(static_shared(f)) + dynamic_shared + 1024;
  return threads < 1 || threads > thread_limit(f) ? 0 : std::min({32, 64 / warps, int((164u << 10) / shared)});
}

} // namespace

extern "C" {

CUresult cuModuleLoadData(LoadedModule **out, const void *image) {
  return entry("cuModuleLoadData", Needs::context,
               [&] { return image ? load_module(static_cast<const char *>(image), out) : int(INVALID_VALUE); });
}

CUresult cuModuleLoadDataEx(LoadedModule **out, const void *image, unsigned, int *, void **) {
  return cuModuleLoadData(out, image);
}

CUresult cuModuleLoad(LoadedModule **out, const char *path) {
  return entry("cuModuleLoad", Needs::context, [&] {
    std::ifstream file(path);
    std::string image{std::istreambuf_iterator<char>(file), {}};
    return file.is_open() ? load_module(image.c_str(), out) : int(FILE_NOT_FOUND);
  });
}

CUresult cuModuleUnload(LoadedModule *module) {
  return entry("cuModuleUnload", Needs::context, [&] { return unload_module(module); });
}

CUresult cuModuleGetFunction(Function **out, LoadedModule *module, const char *name) {
  return entry("cuModuleGetFunction", Needs::context, [&] { return find_function(module, name, out); });
}

CUresult cuModuleGetGlobal_v2(CUdeviceptr *, size_t *, LoadedModule *, const char *name) {
  return entry("cuModuleGetGlobal_v2", Needs::context, [&] {
    explain("global variables of modules are not modelled: %s", name);
    return NOT_FOUND;
  });
}

CUresult cuFuncGetAttribute(int *value, int attribute, void *handle) {
  return with_function("cuFuncGetAttribute", handle, [&](Function &f) {
    switch (attribute) {
    case 0: *value = thread_limit(f); return SUCCESS;
    case 1: *value = static_shared(f); return SUCCESS;
    case 2: case 3: case 7: *value = 0; return SUCCESS;
    case 4: *value = 32; return SUCCESS; // registers of a typical kernel: the host has none to count
    case 5: case 6: *value = options().capability; return SUCCESS;
    case 8: *value = f.max_dynamic_shared; return SUCCESS;
    case 9: *value = -1; return SUCCESS;
    default: return INVALID_VALUE;
    }
  });
}

CUresult cuFuncSetAttribute(void *handle, int attribute, int value) {
  return with_function("cuFuncSetAttribute", handle, [&](Function &f) {
    if (attribute == 9)
      return SUCCESS;
    if (attribute != 8 || value < 0 || value + static_shared(f) > shared_optin)
      return INVALID_VALUE;
    f.max_dynamic_shared = value;
    return SUCCESS;
  });
}

CUresult cuFuncSetCacheConfig(void *handle, int) {
  return with_function("cuFuncSetCacheConfig", handle, [](Function &) { return SUCCESS; });
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, void *handle, int threads, size_t shared,
                                                              unsigned) {
  return with_function("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", handle, [&](Function &f) {
    *blocks = resident_blocks(f, threads, shared);
    return SUCCESS;
  });
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *handle, int threads, size_t shared) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, handle, threads, shared, 0);
}

CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int *grid, int *block, void *handle, size_t (*shared_of)(int),
                                                   size_t shared, int limit, unsigned) {
  return with_function("cuOccupancyMaxPotentialBlockSizeWithFlags", handle, [&](Function &f) {
    int best = 0;
    for (int threads = thread_limit(f); threads >= 32; threads -= 32) {
      if (limit && threads > limit)
        continue;
      int blocks = resident_blocks(f, threads, shared_of ? shared_of(threads) : shared);
      if (blocks * threads > best) {
        best = blocks * threads;
        *block = threads;
        *grid = blocks * options().multiprocessors;
      }
    }
    return best ? SUCCESS : INVALID_VALUE;
  });
}

CUresult cuOccupancyMaxPotentialBlockSize(int *grid, int *block, void *handle, size_t (*shared_of)(int), size_t shared,
                                          int limit) {
  return cuOccupancyMaxPotentialBlockSizeWithFlags(grid, block, handle, shared_of, shared, limit, 0);
}

CUresult cuLaunchKernel(void *handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, void *stream_handle, void **params,
                        void **extra) {
  return with_function("cuLaunchKernel", handle, [&](Function &f) {
    Stream *stream = stream_of(stream_handle);
    if (!stream)
      return int(INVALID_HANDLE);
    if (extra) {
      explain("a launch with `extra` is not modelled");
      return int(NOT_SUPPORTED);
    }
    return launch(&f, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, stream, params);
  });
}

} // extern "C"
