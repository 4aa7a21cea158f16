// Context switch of the System V x86-64 convention, and ucontext elsewhere.
#include "fiber.hpp"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "options.hpp"

// Present when a sanitizer is loaded.
extern "C" {
void __sanitizer_start_switch_fiber(void **, const void *, size_t) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void *, const void **, size_t *) __attribute__((weak));
}

namespace cuda_host {
namespace {

// Entry of a fiber that starts.
void (*starting)() = nullptr;

void allocate_stack(Fiber &fiber) {
  size_t page = size_t(sysconf(_SC_PAGESIZE));
  // Instrumented frames are several times larger.
  size_t size = options().sanitizer == Sanitizer::address ? 512 << 10 : 128 << 10;
  void *memory = mmap(nullptr, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    perror("cuda-host: no memory for the stack of a device thread");
    abort();
  }
  mprotect(memory, page, PROT_NONE);
  fiber.stack = static_cast<char *>(memory) + page;
  fiber.stack_size = size;
}

[[noreturn]] void first() {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  starting();
  abort();
}

} // namespace

#if defined(__x86_64__) && !defined(CUDA_HOST_UCONTEXT)

// Saves what a call preserves on the old stack, continues on the new one.
extern "C" void cuda_host_switch(void **save, void *load);
asm(R"(
.text
.globl cuda_host_switch
.hidden cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
.globl cuda_host_land
.hidden cuda_host_land
cuda_host_land:
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch, .-cuda_host_switch
)");
extern "C" void cuda_host_land();

void prepare(Fiber &fiber, void (*entry)(), unsigned colour) {
  if (!fiber.stack)
    allocate_stack(fiber);
  starting = entry;
  // A function is entered with the stack 8 bytes off a multiple of 16.
  uintptr_t top = (uintptr_t(fiber.stack) + fiber.stack_size - colour % 64 * 64) & ~uintptr_t(15);
  void **frame = reinterpret_cast<void **>(top) - 8;
  for (int i = 0; i < 6; ++i)
    frame[i] = nullptr;
  frame[6] = reinterpret_cast<void *>(&first);
  frame[7] = nullptr;
  fiber.stack_pointer = frame;
}

static void raw_switch(Fiber &from, Fiber &to) { cuda_host_switch(&from.stack_pointer, to.stack_pointer); }

bool leave_signal(void *signal_context, Fiber &to) {
  auto *context = static_cast<ucontext_t *>(signal_context);
  context->uc_mcontext.gregs[REG_RSP] = greg_t(to.stack_pointer);
  context->uc_mcontext.gregs[REG_RIP] = greg_t(&cuda_host_land);
  return true;
}

#else

static ucontext_t *context_of(Fiber &fiber) {
  if (!fiber.stack_pointer)
    fiber.stack_pointer = new ucontext_t;
  return static_cast<ucontext_t *>(fiber.stack_pointer);
}

void prepare(Fiber &fiber, void (*entry)(), unsigned colour) {
  if (!fiber.stack)
    allocate_stack(fiber);
  starting = entry;
  ucontext_t *context = context_of(fiber);
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack;
  context->uc_stack.ss_size = fiber.stack_size - colour % 64 * 64;
  context->uc_link = nullptr;
  makecontext(context, first, 0);
}

static void raw_switch(Fiber &from, Fiber &to) { swapcontext(context_of(from), context_of(to)); }

bool leave_signal(void *, Fiber &) { return false; }

#endif

void adopt(Fiber &fiber) {
  if (!__sanitizer_start_switch_fiber)
    return;
  static thread_local Fiber machine;
  if (!machine.stack) {
    pthread_attr_t attributes;
    void *bottom = nullptr;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &bottom, &machine.stack_size);
    pthread_attr_destroy(&attributes);
    machine.stack = static_cast<char *>(bottom);
  }
  fiber.stack = machine.stack;
  fiber.stack_size = machine.stack_size;
}

void hand_over(Fiber &from, Fiber &to) {
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_size);
  raw_switch(from, to);
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

} // namespace cuda_host
