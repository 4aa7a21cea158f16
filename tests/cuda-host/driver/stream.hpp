// Streams, events, and captured graphs: when an operation runs.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "driver.hpp"

namespace cuda_host {

struct Stream;
struct Capture;

// One recording of an event. `done` once the stream has come past it.
struct Record {
  Stream *stream = nullptr;
  bool done = false;
  double milliseconds = 0;
};

struct Event {
  bool timing = true;
  std::shared_ptr<Record> last;
  // The capture in which it was last recorded, and the nodes it stands for.
  std::shared_ptr<Capture> capture;
  std::set<size_t> nodes;
};

struct Operation {
  std::string what;
  // Returns 0 or the error that leaves the device unusable.
  std::function<int()> run;
  // Not before this.
  std::shared_ptr<Record> waits;
};

struct Node {
  std::string what;
  std::function<int()> run;
  // Positions of the nodes that come before.
  std::set<size_t> after;
};

struct Graph {
  std::vector<Node> nodes;
};

struct Capture {
  Stream *origin = nullptr;
  Graph *graph = nullptr;
  int mode = 0;
  bool invalid = false;
  unsigned long long thread = 0;
};

struct Stream {
  Context *context = nullptr;
  // Does not wait for the NULL stream, nor it for this one.
  bool non_blocking = false;
  unsigned number = 0;
  std::deque<Operation> pending;
  std::shared_ptr<Capture> capture;
  // While capturing: the nodes the next one comes after.
  std::set<size_t> frontier;
};

// The stream of a handle, null where there is none.
Stream *stream_of(void *handle);
Stream *create_stream(bool non_blocking);
int destroy_stream(Stream *stream);

// Puts an operation in the stream's order, or into the graph being captured.
int enqueue(Stream *stream, std::string what, std::function<int()> run);
// Runs what a stream, or every stream of the context, has pending. Returns the sticky error.
int drain(Stream *stream);
int drain_all(Context *context);
// Everything the NULL stream waits for: what a synchronous copy lets finish first.
int drain_blocking(Context *context);
// Runs one operation. False where nothing is pending.
bool step(Stream *stream);

bool is_event(void *handle);
Event *create_event(bool timing);
void destroy_event(Event *event);
int record(Event *event, Stream *stream);
int wait_for(Stream *stream, Event *event);
int run_until(const std::shared_ptr<Record> &record);

// An error where a call that may not happen during a capture does; it spoils the capture.
int forbid_during_capture(const char *what);
int begin_capture(Stream *stream, int mode);
int end_capture(Stream *stream, Graph **out);
int launch_graph(const Graph &graph, Stream *stream);

} // namespace cuda_host
