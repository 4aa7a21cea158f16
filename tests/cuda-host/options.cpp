// Reading the options; both libraries are built with this file.
#include "options.hpp"

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <unistd.h>
#include <map>
#include <sstream>

namespace cuda_host {
namespace {

[[noreturn]] void bad(const char *name, const std::string &value, const char *expected) {
  fprintf(stderr, "cuda-host: %s=%s: expected %s\n", name, value.c_str(), expected);
  _exit(64);
}

std::string text(const char *name) {
  const char *value = getenv(name);
  return value ? value : "";
}

template <class T> void number(const char *name, T &out) {
  std::string value = text(name);
  if (value.empty())
    return;
  char *end = nullptr;
  out = T(strtoull(value.c_str(), &end, 10));
  if (*end)
    bad(name, value, "a whole number");
}

// `number` of "WORD:NUMBER".
bool numbered(const std::string &word, const std::string &value, uint64_t &number) {
  if (value.rfind(word + ":", 0) != 0)
    return false;
  const char *begin = value.c_str() + word.size() + 1;
  char *end = nullptr;
  number = strtoull(begin, &end, 10);
  return end != begin && !*end;
}

// `seed` of "random:SEED".
bool random_seed(const std::string &value, uint64_t &seed) { return numbered("random", value, seed); }

std::vector<std::string> split(const std::string &s, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(s);
  for (std::string part; std::getline(in, part, separator);)
    parts.push_back(part);
  return parts;
}

std::vector<Failure> failures(const std::string &value) {
  const char *expected = "FUNCTION:CALL:CODE[:sticky|:late], several separated by commas";
  std::vector<Failure> out;
  for (const std::string &entry : split(value, ',')) {
    auto part = split(entry, ':');
    if (part.size() < 3 || part.size() > 4)
      bad("CUDA_HOST_FAIL", value, expected);
    std::string mode = part.size() == 4 ? part[3] : "";
    Failure f{part[0], strtoull(part[1].c_str(), nullptr, 10), atoi(part[2].c_str()), !mode.empty(), mode == "late"};
    if (!f.call || !f.code || (!mode.empty() && mode != "sticky" && mode != "late"))
      bad("CUDA_HOST_FAIL", value, expected);
    out.push_back(f);
  }
  return out;
}

std::vector<Skip> skips(const std::string &value) {
  std::vector<Skip> out;
  for (const std::string &entry : split(value, ',')) {
    auto part = split(entry, ':');
    if (part.empty() || part.size() > 2)
      bad("CUDA_HOST_SKIP", value, "FUNCTION[:CALL], several separated by commas");
    out.push_back({part[0], part.size() == 2 ? strtoull(part[1].c_str(), nullptr, 10) : 0});
  }
  return out;
}

Options read() {
  Options o;
  std::string order = text("CUDA_HOST_ORDER");
  if (order == "reverse")
    o.order = Order::reverse;
  else if (random_seed(order, o.order_seed))
    o.order = Order::random;
  else if (!order.empty() && order != "forward")
    bad("CUDA_HOST_ORDER", order, "forward, reverse or random:SEED");
  std::string streams = text("CUDA_HOST_STREAMS");
  if (streams == "lazy")
    o.streams = Streams::lazy;
  else if (numbered("late", streams, o.one_stream))
    o.streams = Streams::late;
  else if (numbered("early", streams, o.one_stream))
    o.streams = Streams::early;
  else if (random_seed(streams, o.stream_seed))
    o.streams = Streams::random;
  else if (!streams.empty() && streams != "eager")
    bad("CUDA_HOST_STREAMS", streams, "eager, lazy, late:STREAM, early:STREAM or random:SEED");
  std::string sanitizer = text("CUDA_HOST_SANITIZE");
  if (sanitizer == "address")
    o.sanitizer = Sanitizer::address;
  else if (sanitizer == "thread")
    o.sanitizer = Sanitizer::thread;
  else if (!sanitizer.empty() && sanitizer != "none")
    bad("CUDA_HOST_SANITIZE", sanitizer, "none, address or thread");
  number("CUDA_HOST_DEVICES", o.devices);
  number("CUDA_HOST_MEMORY", o.memory);
  number("CUDA_HOST_DRIVER_VERSION", o.driver_version);
  number("CUDA_HOST_CAPABILITY", o.capability);
  number("CUDA_HOST_MULTIPROCESSORS", o.multiprocessors);
  number("CUDA_HOST_POOLS", o.pools);
  o.failures = failures(text("CUDA_HOST_FAIL"));
  o.skips = skips(text("CUDA_HOST_SKIP"));
  o.counts = text("CUDA_HOST_COUNTS");
  o.log = text("CUDA_HOST_LOG");
  o.real_nvrtc = text("CUDA_HOST_REAL_NVRTC");
  o.modules = text("CUDA_HOST_MODULES");
  if (o.modules.empty())
    o.modules = folder() + "/modules";
  if (std::string compiler = text("CUDA_HOST_COMPILER"); !compiler.empty())
    o.compiler = compiler;
  return o;
}

std::map<std::string, uint64_t> &calls = *new std::map<std::string, uint64_t>;
int sticky = 0;

} // namespace

const Options &options() {
  // Never destroyed: the counts are written when the process ends.
  static const Options *o = new Options(read());
  return *o;
}

int injected(const char *function) {
  if (options().failures.empty())
    return 0;
  uint64_t call = ++calls[function];
  for (const Failure &f : options().failures)
    if (f.call == call && f.function == function) {
      if (f.sticky)
        sticky = f.code;
      return f.late ? 0 : f.code;
    }
  return 0;
}

bool skipped(const char *function, uint64_t call) {
  for (const Skip &s : options().skips)
    if (s.function == function && (s.call == 0 || s.call == call))
      return true;
  return false;
}

int injected_sticky() { return sticky; }

const std::string &folder() {
  static const std::string *path = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<void *>(&options), &info);
    std::string file = info.dli_fname ? info.dli_fname : "";
    size_t slash = file.rfind('/');
    return new std::string(slash == std::string::npos ? "." : file.substr(0, slash));
  }();
  return *path;
}

// splitmix64
uint32_t Random::next() {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return uint32_t((z ^ (z >> 31)) >> 32);
}

} // namespace cuda_host
