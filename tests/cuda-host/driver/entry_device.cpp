// Entry points: initialisation, devices, contexts, errors.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "driver.hpp"
#include "module.hpp"
#include "stream.hpp"

using namespace cuda_host;

namespace {

int check_device(CUdevice device) { return device >= 0 && device < options().devices ? SUCCESS : INVALID_DEVICE; }

// Attributes by number; those of an 80 GB A100 where the options say nothing else.
bool attribute(int number, int &value) {
  switch (number) {
  case 1: value = max_threads; return true;
  case 2: case 3: value = 1024; return true;
  case 4: value = 64; return true;
  case 5: value = 0x7fffffff; return true;
  case 6: case 7: value = 65535; return true;
  case 8: value = shared_per_block; return true;
  case 9: value = 65536; return true;
  case 10: value = 32; return true;
  case 11: value = 0x7fffffff; return true;
  case 12: case 82: value = 65536; return true;
  case 13: value = 1410000; return true;                     // kHz
  case 14: value = 512; return true;
  case 15: value = 1; return true;
  case 16: value = options().multiprocessors; return true;
  case 17: case 18: case 20: case 32: case 35: value = 0; return true;
  case 19: case 31: case 41: case 78: case 79: case 80: case 95: value = 1; return true;
  case 33: case 34: case 50: value = 0; return true;
  case 36: value = 1215000; return true;                     // kHz
  case 37: value = 5120; return true;                        // bits
  case 38: value = 40 << 20; return true;
  case 39: value = 2048; return true;
  case 40: value = 3; return true;
  case 75: value = options().capability / 10; return true;
  case 76: value = options().capability % 10; return true;
  case 81: value = 164 << 10; return true;
  case 83: case 88: case 89: value = 0; return true;
  case 97: value = shared_optin; return true;
  case 99: value = 1; return true;
  case 106: value = 32; return true;
  case 111: value = 1 << 10; return true;
  case 115: value = options().pools; return true;
  default: return false;
  }
}

struct Description {
  int code;
  const char *name, *text;
};

constexpr Description descriptions[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate captures"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream"},
    {STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
     "capturing stream has unjoined work"},
    {STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Description *describe(int code) {
  for (const Description &d : descriptions)
    if (d.code == code)
      return &d;
  return nullptr;
}

} // namespace

extern "C" {

CUresult cuInit(unsigned) {
  return entry("cuInit", Needs::nothing, [] {
    if (options().devices == 0)
      return NO_DEVICE;
    initialized = true;
    return SUCCESS;
  });
}

CUresult cuDriverGetVersion(int *version) {
  return entry("cuDriverGetVersion", Needs::nothing, [&] {
    *version = options().driver_version;
    return SUCCESS;
  });
}

// The real NVRTC asks for tables that no document describes, and does without them where there are none.
CUresult cuGetExportTable(const void **table, const void *) {
  *table = nullptr;
  return INVALID_VALUE;
}

CUresult cuGetErrorName(CUresult code, const char **name) {
  const Description *d = describe(code);
  *name = d ? d->name : nullptr;
  return d ? SUCCESS : INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult code, const char **text) {
  const Description *d = describe(code);
  *text = d ? d->text : nullptr;
  return d ? SUCCESS : INVALID_VALUE;
}

CUresult cuDeviceGetCount(int *count) {
  return entry("cuDeviceGetCount", Needs::driver, [&] {
    *count = options().devices;
    return SUCCESS;
  });
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  return entry("cuDeviceGet", Needs::driver, [&] {
    *device = ordinal;
    return check_device(ordinal);
  });
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
  return entry("cuDeviceGetName", Needs::driver, [&] {
    snprintf(name, size_t(length), "CUDA host stand-in %d", device);
    return check_device(device);
  });
}

CUresult cuDeviceGetUuid_v2(unsigned char *uuid, CUdevice device) {
  return entry("cuDeviceGetUuid_v2", Needs::driver, [&] {
    memset(uuid, 0, 16);
    uuid[15] = static_cast<unsigned char>(device);
    return check_device(device);
  });
}
CUresult cuDeviceGetUuid(unsigned char *uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
  return entry("cuDeviceTotalMem_v2", Needs::driver, [&] {
    *bytes = options().memory;
    return check_device(device);
  });
}

CUresult cuDeviceGetAttribute(int *value, int number, CUdevice device) {
  return entry("cuDeviceGetAttribute", Needs::driver, [&] {
    if (int error = check_device(device))
      return error;
    if (!attribute(number, *value)) {
      explain("device attribute %d is not modelled", number);
      return int(INVALID_VALUE);
    }
    return int(SUCCESS);
  });
}

CUresult cuDevicePrimaryCtxRetain(Context **context, CUdevice device) {
  return entry("cuDevicePrimaryCtxRetain", Needs::driver, [&] {
    if (int error = check_device(device))
      return error;
    *context = primary(device);
    ++(*context)->retained;
    return int(SUCCESS);
  });
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return entry("cuDevicePrimaryCtxRelease_v2", Needs::driver, [&] {
    if (int error = check_device(device))
      return error;
    if (!primary(device)->retained)
      return int(INVALID_CONTEXT);
    --primary(device)->retained;
    return int(SUCCESS);
  });
}

CUresult cuCtxGetCurrent(Context **context) {
  return entry("cuCtxGetCurrent", Needs::driver, [&] {
    *context = current;
    return SUCCESS;
  });
}

CUresult cuCtxSetCurrent(Context *context) {
  return entry("cuCtxSetCurrent", Needs::driver, [&] {
    current = context;
    return SUCCESS;
  });
}

CUresult cuCtxGetDevice(CUdevice *device) {
  return entry("cuCtxGetDevice", Needs::context, [&] {
    *device = current->device;
    return SUCCESS;
  });
}

CUresult cuCtxSetFlags(unsigned) {
  return entry("cuCtxSetFlags", Needs::context, [] { return SUCCESS; });
}

CUresult cuCtxSynchronize() {
  return entry("cuCtxSynchronize", Needs::context, [] {
    if (int error = forbid_during_capture("cuCtxSynchronize"))
      return error;
    int error = drain_all(current);
    counts.write();
    return error;
  });
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  return entry("cuCtxGetStreamPriorityRange", Needs::context, [&] {
    *least = 0;
    *greatest = -5;
    return SUCCESS;
  });
}

CUresult cuProfilerStart() { return entry("cuProfilerStart", Needs::context, [] { return SUCCESS; }); }
CUresult cuProfilerStop() { return entry("cuProfilerStop", Needs::context, [] { return SUCCESS; }); }

} // extern "C"
