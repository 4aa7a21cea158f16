// Signal handler of the machine thread that runs kernels.
#include "fault.hpp"

#include <csignal>

#include "driver.hpp"

namespace cuda_host::fault {
namespace {

const bool *in_kernel = nullptr;
Fiber *target = nullptr;
volatile int signal_number = 0;
void *volatile address = nullptr;
constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction previous[3];

// Runs on a small stack of its own, so it only takes notes.
void handler(int number, siginfo_t *info, void *context) {
  if (in_kernel && *in_kernel && leave_signal(context, *target)) {
    signal_number = number;
    address = info->si_addr;
    return;
  }
  // Not a kernel's: the earlier handler runs when the instruction faults again.
  for (size_t i = 0; i < 3; ++i)
    sigaction(signals[i], &previous[i], nullptr);
}

} // namespace

void begin(const bool &running, Fiber &host) {
  // A fiber that has run out of stack cannot run the handler.
  static char stack[64 << 10];
  stack_t current{};
  if (sigaltstack(nullptr, &current) == 0 && (current.ss_flags & SS_DISABLE)) {
    current.ss_sp = stack;
    current.ss_size = sizeof stack;
    current.ss_flags = 0;
    sigaltstack(&current, nullptr);
  }
  in_kernel = &running;
  target = &host;
  signal_number = 0;
  // AddressSanitizer reports faults itself.
  if (options().sanitizer == Sanitizer::address)
    return;
  struct sigaction action {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (size_t i = 0; i < 3; ++i)
    sigaction(signals[i], &action, &previous[i]);
}

void end() {
  in_kernel = nullptr;
  if (options().sanitizer == Sanitizer::address)
    return;
  for (size_t i = 0; i < 3; ++i)
    sigaction(signals[i], &previous[i], nullptr);
}

bool happened() { return signal_number != 0; }

int error(const std::string &place) {
  bool arithmetic = signal_number == SIGFPE;
  signal_number = 0;
  if (arithmetic)
    explain("%s: integer division by zero or overflow", place.c_str());
  else
    explain("%s: fault at address %p", place.c_str(), address);
  return arithmetic ? LAUNCH_FAILED : ILLEGAL_ADDRESS;
}

} // namespace cuda_host::fault
