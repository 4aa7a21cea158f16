// Signal handler of the machine thread that runs kernels.
#include "fault.hpp"

#include <csignal>
#include <initializer_list>

#include "driver.hpp"

namespace cuda_host::fault {
namespace {

std::string (*where)() = nullptr;
Fiber *target = nullptr;
int *result = nullptr;
thread_local bool running = false;
constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction previous[3];

// Not safe in general, but the interrupted code is a kernel, which holds no lock of the C library.
void handler(int signal, siginfo_t *info, void *context) {
  std::string place = running ? where() : std::string();
  if (!place.empty()) {
    if (signal == SIGFPE)
      explain("%s: integer division by zero or overflow", place.c_str());
    else
      explain("%s: fault at address %p", place.c_str(), info->si_addr);
    if (leave_signal(context, *target)) {
      *result = signal == SIGFPE ? LAUNCH_FAILED : ILLEGAL_ADDRESS;
      return;
    }
  }
  // Not a kernel's: the earlier handler runs when the instruction faults again.
  for (size_t i = 0; i < 3; ++i)
    sigaction(signals[i], &previous[i], nullptr);
}

} // namespace

void begin(std::string (*place)(), Fiber &host, int &error) {
  where = place;
  target = &host;
  result = &error;
  running = true;
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
  running = false;
  if (options().sanitizer == Sanitizer::address)
    return;
  for (size_t i = 0; i < 3; ++i)
    sigaction(signals[i], &previous[i], nullptr);
}

} // namespace cuda_host::fault
