// What the stand-ins of NVIDIA's libraries have in common: objects that callers create, set and give back, and the frame of
// a call. Their statuses differ, so a library says which are its success and its invalid value.
#pragma once

#include <set>

#include "driver/driver.hpp"

namespace library {

template <class T> std::set<const void *> &alive() {
  static auto *all = new std::set<const void *>;
  return *all;
}

template <class T> bool is(const T *object) { return alive<T>().count(object) != 0; }

// Frame of every function: the driver's lock, counts, injected errors.
template <class Body> int call(const char *name, Body body) {
  std::lock_guard<std::recursive_mutex> hold(cuda_host::lock);
  uint64_t number = ++cuda_host::counts.calls[name];
  if (int code = cuda_host::injected(name)) {
    cuda_host::explain("%s returns the injected error %d", name, code);
    return code;
  }
  return cuda_host::skipped(name, number) ? 0 : int(body());
}

template <int invalid, class T> int make(const char *name, T **out, T value) {
  return call(name, [&] {
    if (!out)
      return invalid;
    *out = new T(value);
    alive<T>().insert(*out);
    return 0;
  });
}

template <int invalid, class T> int destroy(const char *name, T *object) {
  return call(name, [&] {
    if (!alive<T>().erase(object)) {
      cuda_host::explain("%s: no such object", name);
      return invalid;
    }
    delete object;
    return 0;
  });
}

} // namespace library
