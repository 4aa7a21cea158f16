// Options of the stand-in, read once from environment variables named CUDA_HOST_*. README.md lists them for users.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace cuda_host {

enum class Order { forward, reverse, random };
enum class Streams { eager, lazy, late, early, random };
enum class Sanitizer { none, address, thread };

// An error to return from the `call`-th call (from 1) of `function`.
struct Failure {
  std::string function;
  uint64_t call;
  int code;
  // The error comes back from every later call too.
  bool sticky;
  // The call itself succeeds; only later ones fail.
  bool late;
};

// The `call`-th call (from 1; 0 is every call) of `function` succeeds without doing anything.
struct Skip {
  std::string function;
  uint64_t call;
};

struct Options {
  Order order = Order::forward;
  Streams streams = Streams::eager;
  // Seeds of `random`.
  uint64_t order_seed = 0, stream_seed = 0;
  // The stream, by the order of creation from 1, that `late` and `early` mean.
  uint64_t one_stream = 0;
  Sanitizer sanitizer = Sanitizer::none;
  int devices = 1;
  size_t memory = size_t(16) << 30;
  int driver_version = 12080;
  int capability = 80;
  int multiprocessors = 108;
  bool pools = true;
  std::vector<Failure> failures;
  std::vector<Skip> skips;
  std::string counts, log, real_nvrtc, modules, compiler = "g++";
};

// Ends the process with a message where a variable cannot be read.
const Options &options();

// A code to return instead of making this call, 0 for none. Counts the call.
int injected(const char *function);
// Whether call number `call` of a function is to do nothing.
bool skipped(const char *function, uint64_t call);
// Code of a sticky failure that has happened, 0 for none.
int injected_sticky();

// Folder of this library, where its headers and siblings are.
const std::string &folder();

// A small generator, the same on every machine.
struct Random {
  uint64_t state;
  uint32_t next();
  uint32_t below(uint32_t n) { return uint32_t((uint64_t(next()) * n) >> 32); }
};

} // namespace cuda_host
