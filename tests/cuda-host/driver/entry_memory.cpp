// Entry points: memory, copies and fills.
#include "driver.hpp"
#include "memory.hpp"
#include "stream.hpp"

using namespace cuda_host;

namespace {

void *at(CUdeviceptr pointer) { return reinterpret_cast<void *>(pointer); }

struct Direction {
  const char *what;
  uint64_t Counts::*bytes;
};

constexpr Direction to_device{"copy to the device", &Counts::host_to_device};
constexpr Direction to_host{"copy to the host", &Counts::device_to_host};
constexpr Direction on_device{"copy on the device", &Counts::device_to_device};

void copy_now(const Direction &direction, void *target, const void *source, size_t size) {
  memory::copy_bytes(target, source, size);
  counts.*direction.bytes += size;
}

// A copy between what the caller names. What was page-locked or device memory then must still be when the copy runs.
int copy_later(const Direction &direction, void *target, const void *source, size_t size, Stream *stream) {
  log_line("%s %zu bytes stream %u%s", direction.what, size, stream->number, stream->capture ? " captured" : "");
  bool target_known = memory::known(target), source_known = memory::known(source);
  return enqueue(stream, direction.what, [=]() -> int {
    if (memory::known(target) != target_known || memory::known(source) != source_known) {
      explain("%s: memory was freed before the copy ran", direction.what);
      return ILLEGAL_ADDRESS;
    }
    copy_now(direction, target, source, size);
    return SUCCESS;
  });
}

// Memory the graph would read or write at each replay must stay where it is.
int check_captured(const Stream *stream, const void *host, size_t size) {
  if (!stream->capture || memory::page_locked(host, size))
    return SUCCESS;
  stream->capture->invalid = true;
  explain("a captured copy must use page-locked host memory");
  return STREAM_CAPTURE_UNSUPPORTED;
}

template <class Word>
int fill(const char *name, void (*write)(CUdeviceptr, Word, size_t), CUdeviceptr target, Word value, size_t count,
         void *handle) {
  return entry(name, Needs::context, [&] {
    Stream *stream = stream_of(handle);
    if (!stream)
      return int(INVALID_HANDLE);
    size_t size = count * sizeof(Word);
    if (!memory::check(name, target, size) || target % sizeof(Word))
      return int(INVALID_VALUE);
    log_line("fill %zu bytes stream %u%s", size, stream->number, stream->capture ? " captured" : "");
    return enqueue(stream, "fill", [=] {
      write(target, value, count);
      counts.memset += size;
      return 0;
    });
  });
}

int allocate_async(const char *name, CUdeviceptr *out, size_t size, void *handle) {
  return entry(name, Needs::context, [&] {
    Stream *stream = stream_of(handle);
    if (!stream)
      return int(INVALID_HANDLE);
    if (stream->capture) {
      stream->capture->invalid = true;
      explain("memory nodes of graphs are not modelled: allocate before the capture");
      return int(NOT_SUPPORTED);
    }
    return memory::allocate(out, size);
  });
}

} // namespace

extern "C" {

CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
  return entry("cuMemGetInfo_v2", Needs::context, [&] {
    *total = options().memory;
    *free = options().memory - current->used;
    return SUCCESS;
  });
}

CUresult cuMemAlloc_v2(CUdeviceptr *out, size_t size) {
  return entry("cuMemAlloc_v2", Needs::context, [&] {
    if (int error = forbid_during_capture("cuMemAlloc"))
      return error;
    return memory::allocate(out, size);
  });
}

CUresult cuMemAllocAsync(CUdeviceptr *out, size_t size, void *stream) {
  return allocate_async("cuMemAllocAsync", out, size, stream);
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *out, size_t size, void *, void *stream) {
  return allocate_async("cuMemAllocFromPoolAsync", out, size, stream);
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
  return entry("cuMemFree_v2", Needs::context, [&] {
    if (int error = forbid_during_capture("cuMemFree"))
      return error;
    drain_all(current);
    return memory::release(pointer);
  });
}

CUresult cuMemFreeAsync(CUdeviceptr pointer, void *handle) {
  return entry("cuMemFreeAsync", Needs::context, [&] {
    Stream *stream = stream_of(handle);
    if (!stream)
      return int(INVALID_HANDLE);
    if (stream->capture) {
      stream->capture->invalid = true;
      explain("memory nodes of graphs are not modelled: free after the capture");
      return int(NOT_SUPPORTED);
    }
    return enqueue(stream, "free", [pointer] {
      memory::release(pointer);
      return 0;
    });
  });
}

CUresult cuMemHostAlloc(void **out, size_t size, unsigned) {
  return entry("cuMemHostAlloc", Needs::context, [&] {
    if (int error = forbid_during_capture("cuMemHostAlloc"))
      return error;
    return memory::allocate_host(out, size);
  });
}

CUresult cuMemFreeHost(void *pointer) {
  return entry("cuMemFreeHost", Needs::context, [&] { return memory::release_host(pointer); });
}

CUresult cuMemHostRegister_v2(void *pointer, size_t size, unsigned) {
  return entry("cuMemHostRegister_v2", Needs::context, [&] { return memory::register_host(pointer, size); });
}

CUresult cuMemHostUnregister(void *pointer) {
  return entry("cuMemHostUnregister", Needs::context, [&] { return memory::unregister_host(pointer); });
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *out, void *pointer, unsigned) {
  return entry("cuMemHostGetDevicePointer_v2", Needs::context, [&] {
    *out = reinterpret_cast<CUdeviceptr>(pointer);
    return memory::page_locked(pointer, 1) ? SUCCESS : INVALID_VALUE;
  });
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t size, void *handle) {
  return entry("cuMemcpyHtoDAsync_v2", Needs::context, [&] {
    Stream *stream = stream_of(handle);
    if (!stream)
      return int(INVALID_HANDLE);
    if (!memory::check("cuMemcpyHtoDAsync", target, size))
      return int(INVALID_VALUE);
    if (int error = check_captured(stream, source, size))
      return error;
    if (memory::page_locked(source, size))
      return copy_later(to_device, at(target), source, size, stream);
    // Pageable memory is staged before the call returns.
    const char *bytes = static_cast<const char *>(source);
    auto staged = std::make_shared<std::vector<char>>(bytes, bytes + size);
    log_line("%s %zu bytes staged stream %u", to_device.what, size, stream->number);
    return enqueue(stream, to_device.what, [=] {
      copy_now(to_device, at(target), staged->data(), size);
      return 0;
    });
  });
}

CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t size, void *handle) {
  return entry("cuMemcpyDtoHAsync_v2", Needs::context, [&] {
    Stream *stream = stream_of(handle);
    if (!stream)
      return int(INVALID_HANDLE);
    if (!memory::check("cuMemcpyDtoHAsync", source, size))
      return int(INVALID_VALUE);
    if (int error = check_captured(stream, target, size))
      return error;
    int error = copy_later(to_host, target, at(source), size, stream);
    // To pageable memory the call returns when the copy is done.
    return error || memory::page_locked(target, size) ? error : drain(stream);
  });
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t size, void *handle) {
  return entry("cuMemcpyDtoDAsync_v2", Needs::context, [&] {
    Stream *stream = stream_of(handle);
    if (!stream)
      return int(INVALID_HANDLE);
    if (!memory::check("cuMemcpyDtoDAsync", target, size) || !memory::check("cuMemcpyDtoDAsync", source, size))
      return int(INVALID_VALUE);
    return copy_later(on_device, at(target), at(source), size, stream);
  });
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void *source, size_t size) {
  return entry("cuMemcpyHtoD_v2", Needs::context, [&] {
    if (int error = forbid_during_capture("cuMemcpyHtoD"))
      return error;
    if (!memory::check("cuMemcpyHtoD", target, size))
      return int(INVALID_VALUE);
    if (int error = drain_blocking(current))
      return error;
    copy_now(to_device, at(target), source, size);
    return int(SUCCESS);
  });
}

CUresult cuMemcpyDtoH_v2(void *target, CUdeviceptr source, size_t size) {
  return entry("cuMemcpyDtoH_v2", Needs::context, [&] {
    if (int error = forbid_during_capture("cuMemcpyDtoH"))
      return error;
    if (!memory::check("cuMemcpyDtoH", source, size))
      return int(INVALID_VALUE);
    if (int error = drain_blocking(current))
      return error;
    copy_now(to_host, target, at(source), size);
    return int(SUCCESS);
  });
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr target, CUdeviceptr source, size_t size) {
  return cuMemcpyDtoDAsync_v2(target, source, size, nullptr);
}

CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t count, void *stream) {
  return fill("cuMemsetD8Async", memory::fill_bytes, target, value, count, stream);
}
CUresult cuMemsetD32Async(CUdeviceptr target, unsigned value, size_t count, void *stream) {
  return fill("cuMemsetD32Async", memory::fill_words, target, value, count, stream);
}
CUresult cuMemsetD8_v2(CUdeviceptr target, unsigned char value, size_t count) {
  return fill("cuMemsetD8_v2", memory::fill_bytes, target, value, count, nullptr);
}
CUresult cuMemsetD32_v2(CUdeviceptr target, unsigned value, size_t count) {
  return fill("cuMemsetD32_v2", memory::fill_words, target, value, count, nullptr);
}

// One pool per device, which is the device's memory.
CUresult cuDeviceGetDefaultMemPool(void **pool, CUdevice device) {
  return entry("cuDeviceGetDefaultMemPool", Needs::driver, [&] {
    *pool = primary(device);
    return SUCCESS;
  });
}
CUresult cuDeviceGetMemPool(void **pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }
CUresult cuMemPoolSetAttribute(void *, int, void *) {
  return entry("cuMemPoolSetAttribute", Needs::driver, [] { return SUCCESS; });
}
CUresult cuMemPoolTrimTo(void *, size_t) {
  return entry("cuMemPoolTrimTo", Needs::driver, [] { return SUCCESS; });
}

} // extern "C"
