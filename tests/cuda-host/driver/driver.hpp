// The driver library's shared state: devices, contexts, the lock every call takes, error codes and counters.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "options.hpp"

// Our own declarations of the driver interface's types. Handles are pointers to our structures.
using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;

namespace cuda_host {

enum Error : int {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NO_BINARY_FOR_GPU = 209,
  INVALID_PTX = 218,
  UNSUPPORTED_PTX_VERSION = 222,
  FILE_NOT_FOUND = 301,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  LAUNCH_OUT_OF_RESOURCES = 701,
  HOST_MEMORY_ALREADY_REGISTERED = 712,
  HOST_MEMORY_NOT_REGISTERED = 713,
  LAUNCH_FAILED = 719,
  NOT_SUPPORTED = 801,
  STREAM_CAPTURE_UNSUPPORTED = 900,
  STREAM_CAPTURE_INVALIDATED = 901,
  STREAM_CAPTURE_MERGE = 902,
  STREAM_CAPTURE_UNMATCHED = 903,
  STREAM_CAPTURE_UNJOINED = 904,
  STREAM_CAPTURE_ISOLATION = 905,
  STREAM_CAPTURE_IMPLICIT = 906,
  CAPTURED_EVENT = 907,
  UNKNOWN = 999,
};

struct Stream;

struct Context {
  int device = 0;
  // Times the primary context was retained.
  int retained = 0;
  size_t used = 0, peak = 0;
  // The NULL stream.
  Stream *null_stream = nullptr;
};

extern std::recursive_mutex lock;
extern bool initialized;
extern thread_local Context *current;
// Set by a kernel that failed: every later call returns it.
extern int sticky_error;

// The device's primary context.
Context *primary(int device);

// Prints why a call fails: the code alone seldom says.
__attribute__((format(printf, 1, 2))) void explain(const char *format, ...);

// What happened, for tests: see README.md.
struct Counts {
  std::map<std::string, uint64_t> calls, launches;
  uint64_t threads = 0, blocks = 0;
  uint64_t host_to_device = 0, device_to_host = 0, device_to_device = 0, memset = 0;
  uint64_t captured = 0, instantiated = 0, graph_launches = 0, graph_nodes = 0;
  // Writes the file named by CUDA_HOST_COUNTS.
  void write() const;
};
extern Counts counts;
// A line of the file named by CUDA_HOST_LOG.
__attribute__((format(printf, 1, 2))) void log_line(const char *format, ...);

enum class Needs { nothing, driver, context };

// Frame of every entry point: lock, count, injected and sticky errors, then `body`.
template <class Body> CUresult entry(const char *name, Needs needs, Body body) {
  std::lock_guard<std::recursive_mutex> hold(lock);
  uint64_t call = ++counts.calls[name];
  int before = injected_sticky();
  if (int code = injected(name)) {
    explain("%s returns the injected error %d", name, code);
    return code;
  }
  if (needs != Needs::nothing && !initialized)
    return NOT_INITIALIZED;
  if (needs == Needs::context) {
    if (before)
      return before;
    if (sticky_error)
      return sticky_error;
    if (!current)
      return INVALID_CONTEXT;
  }
  return skipped(name, call) ? SUCCESS : CUresult(body());
}

} // namespace cuda_host
