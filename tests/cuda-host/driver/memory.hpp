// Device memory and page-locked host memory.
#pragma once

#include <cstddef>

#include "driver.hpp"

namespace cuda_host::memory {

// A block of exactly `size` bytes filled with 0xff, which reads as NaN.
int allocate(CUdeviceptr *out, size_t size);
int release(CUdeviceptr pointer);
// Whether `size` bytes from `pointer` lie in one block; explains where not.
bool check(const char *what, CUdeviceptr pointer, size_t size);
// Whether a kernel may be given the pointer: null, in a block or at its end, or page-locked.
bool known(const void *pointer);
// The block, of either kind, a pointer lies in.
bool find(const void *pointer, const char **begin, size_t *size);

// Copies and fills that a sanitizer does not see: they may touch guards.
void copy_bytes(void *target, const void *source, size_t size);
void fill_bytes(CUdeviceptr target, unsigned char value, size_t count);
void fill_words(CUdeviceptr target, unsigned value, size_t count);

int allocate_host(void **out, size_t size);
int release_host(void *pointer);
int register_host(void *pointer, size_t size);
int unregister_host(void *pointer);
bool page_locked(const void *pointer, size_t size);

} // namespace cuda_host::memory
