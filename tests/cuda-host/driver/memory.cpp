// Blocks by their first address. Ranges are checked here; a kernel's accesses are the sanitizers' matter.
#include "memory.hpp"

#include <cstdlib>
#include <cstring>
#include <map>

// Present when the address sanitizer is loaded.
extern "C" {
void __asan_poison_memory_region(const volatile void *, size_t) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void *, size_t) __attribute__((weak));
}

namespace cuda_host::memory {
namespace {

struct Block {
  size_t size;
  Context *context;
  // Host memory registered by its owner is not ours to free.
  bool owned;
};

using Blocks = std::map<const char *, Block>;
Blocks &device = *new Blocks, &host = *new Blocks;

// The block that holds the bytes; an empty range may stand at a block's end.
Blocks::const_iterator holder(const Blocks &blocks, const char *pointer, size_t size) {
  auto after = blocks.upper_bound(pointer);
  if (after == blocks.begin())
    return blocks.end();
  auto block = std::prev(after);
  size_t offset = size_t(pointer - block->first);
  return offset <= block->second.size && size <= block->second.size - offset ? block : blocks.end();
}

const char *bytes(CUdeviceptr pointer) { return reinterpret_cast<const char *>(pointer); }

void *aligned_poisoned(size_t size) {
  void *memory = nullptr;
  // The driver promises 256 bytes.
  if (posix_memalign(&memory, 256, size))
    return nullptr;
  memset(memory, 0xff, size);
  return memory;
}

} // namespace

int allocate(CUdeviceptr *out, size_t size) {
  if (!out || !size)
    return INVALID_VALUE;
  Context *context = current;
  if (size > options().memory - context->used)
    return OUT_OF_MEMORY;
  void *memory = aligned_poisoned(size);
  if (!memory)
    return OUT_OF_MEMORY;
  device[static_cast<char *>(memory)] = {size, context, true};
  context->used += size;
  context->peak = context->used > context->peak ? context->used : context->peak;
  *out = reinterpret_cast<CUdeviceptr>(memory);
  return SUCCESS;
}

int release(CUdeviceptr pointer) {
  if (!pointer)
    return SUCCESS;
  auto block = device.find(bytes(pointer));
  if (block == device.end()) {
    explain("free of %#llx, which is not the start of a block of device memory", pointer);
    return INVALID_VALUE;
  }
  block->second.context->used -= block->second.size;
  if (__asan_unpoison_memory_region)
    __asan_unpoison_memory_region(block->first, block->second.size);
  memset(reinterpret_cast<void *>(pointer), 0xff, block->second.size);
  free(reinterpret_cast<void *>(pointer));
  device.erase(block);
  return SUCCESS;
}

bool check(const char *what, CUdeviceptr pointer, size_t size) {
  if (holder(device, bytes(pointer), size) != device.end() || holder(host, bytes(pointer), size) != host.end())
    return true;
  auto block = holder(device, bytes(pointer), 0);
  if (block == device.end())
    explain("%s: %#llx is in no block of device memory", what, pointer);
  else
    explain("%s: %zu bytes from offset %zu of a block of %zu bytes", what, size,
            size_t(bytes(pointer) - block->first), block->second.size);
  return false;
}

bool known(const void *pointer) {
  const char *p = static_cast<const char *>(pointer);
  return !p || holder(device, p, 0) != device.end() || holder(host, p, 0) != host.end();
}

bool find(const void *pointer, const char **begin, size_t *size) {
  const char *p = static_cast<const char *>(pointer);
  auto block = holder(device, p, 1);
  if (block == device.end()) {
    block = holder(host, p, 1);
    if (block == host.end())
      return false;
  }
  *begin = block->first;
  *size = block->second.size;
  return true;
}

void copy_bytes(void *target, const void *source, size_t size) {
#ifdef __x86_64__
  asm volatile("rep movsb" : "+D"(target), "+S"(source), "+c"(size) : : "memory");
#else
  const char *from = static_cast<const char *>(source);
  for (volatile char *to = static_cast<char *>(target); size; --size)
    *to++ = *from++;
#endif
}

void fill_bytes(CUdeviceptr target, unsigned char value, size_t count) {
#ifdef __x86_64__
  asm volatile("rep stosb" : "+D"(target), "+c"(count) : "a"(value) : "memory");
#else
  for (auto *byte = reinterpret_cast<volatile unsigned char *>(target); count; --count)
    *byte++ = value;
#endif
}

void fill_words(CUdeviceptr target, unsigned value, size_t count) {
  for (auto *word = reinterpret_cast<volatile unsigned *>(target); count; --count)
    *word++ = value;
}

int allocate_host(void **out, size_t size) {
  if (!out || !size)
    return INVALID_VALUE;
  *out = aligned_poisoned(size);
  if (!*out)
    return OUT_OF_MEMORY;
  host[static_cast<char *>(*out)] = {size, current, true};
  return SUCCESS;
}

int release_host(void *pointer) {
  auto block = host.find(static_cast<char *>(pointer));
  if (block == host.end() || !block->second.owned)
    return INVALID_VALUE;
  free(pointer);
  host.erase(block);
  return SUCCESS;
}

int register_host(void *pointer, size_t size) {
  if (!pointer || !size)
    return INVALID_VALUE;
  if (!host.insert({static_cast<char *>(pointer), {size, current, false}}).second)
    return HOST_MEMORY_ALREADY_REGISTERED;
  return SUCCESS;
}

int unregister_host(void *pointer) {
  auto block = host.find(static_cast<char *>(pointer));
  if (block == host.end() || block->second.owned)
    return HOST_MEMORY_NOT_REGISTERED;
  host.erase(block);
  return SUCCESS;
}

bool page_locked(const void *pointer, size_t size) {
  return holder(host, static_cast<const char *>(pointer), size) != host.end();
}

} // namespace cuda_host::memory

// Not part of the driver's interface: kernels compiled under the address sanitizer may not touch these bytes of device
// memory from here on. For tests of programs that place many buffers in one block.
extern "C" void cuda_host_guard(CUdeviceptr pointer, size_t size) {
  if (__asan_poison_memory_region && cuda_host::memory::check("guard", pointer, size))
    __asan_poison_memory_region(reinterpret_cast<void *>(pointer), size);
}
