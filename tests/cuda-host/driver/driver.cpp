// Shared state, messages and the counts file.
#include "driver.hpp"

#include <cstdarg>
#include <cstdio>
#include <deque>

namespace cuda_host {

std::recursive_mutex lock;
bool initialized = false;
thread_local Context *current = nullptr;
int sticky_error = 0;
Counts counts;

Context *primary(int device) {
  static auto *contexts = new std::deque<Context>(size_t(options().devices));
  Context *context = &(*contexts)[size_t(device)];
  context->device = device;
  return context;
}

void explain(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("cuda-host: ", stderr);
  vfprintf(stderr, format, arguments);
  fputs("\n", stderr);
  va_end(arguments);
}

void log_line(const char *format, ...) {
  if (options().log.empty())
    return;
  static FILE *file = fopen(options().log.c_str(), "w");
  if (!file)
    return;
  va_list arguments;
  va_start(arguments, format);
  vfprintf(file, format, arguments);
  fputs("\n", file);
  fflush(file);
  va_end(arguments);
}

namespace {

void object(FILE *f, const char *name, const std::map<std::string, uint64_t> &values) {
  fprintf(f, "  \"%s\": {", name);
  const char *separator = "";
  for (const auto &[key, value] : values) {
    fprintf(f, "%s\n    \"%s\": %llu", separator, key.c_str(), (unsigned long long)value);
    separator = ",";
  }
  fputs("\n  },\n", f);
}

// Writes the counts when the process ends.
struct AtExit {
  ~AtExit() { counts.write(); }
} at_exit;

} // namespace

void Counts::write() const {
  if (options().counts.empty())
    return;
  std::string temporary = options().counts + ".part";
  FILE *f = fopen(temporary.c_str(), "w");
  if (!f)
    return;
  fputs("{\n", f);
  object(f, "calls", calls);
  object(f, "launches", launches);
  size_t peak = 0;
  for (int d = 0; d < options().devices && initialized; ++d)
    peak = peak > primary(d)->peak ? peak : primary(d)->peak;
  auto field = [f](const char *name, uint64_t value, const char *end = ",") {
    fprintf(f, "  \"%s\": %llu%s\n", name, (unsigned long long)value, end);
  };
  field("blocks", blocks);
  field("threads", threads);
  field("host_to_device_bytes", host_to_device);
  field("device_to_host_bytes", device_to_host);
  field("device_to_device_bytes", device_to_device);
  field("memset_bytes", memset);
  field("graphs_captured", captured);
  field("graphs_instantiated", instantiated);
  field("graph_launches", graph_launches);
  field("graph_nodes_executed", graph_nodes);
  field("peak_bytes", peak, "");
  fputs("}\n", f);
  fclose(f);
  rename(temporary.c_str(), options().counts.c_str());
}

} // namespace cuda_host
