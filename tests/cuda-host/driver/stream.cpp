// Streams as queues. Eager: an operation runs when it is put in. Lazy: only when something waits for it, so that what
// the host reads too early is still old. Late: one stream is lazy, the others overtake it wherever they may; early: the
// other way round. Random: a generator lets streams advance at any call.
#include "stream.hpp"

#include <algorithm>
#include <chrono>
#include <pthread.h>

namespace cuda_host {
namespace {

std::vector<Stream *> &streams = *new std::vector<Stream *>;
std::set<void *> &events = *new std::set<void *>;
unsigned streams_created = 0;

Random &chance() {
  static Random *random = new Random{options().stream_seed};
  return *random;
}

double now() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

Stream *null_stream(Context *context) {
  if (!context->null_stream) {
    context->null_stream = new Stream;
    context->null_stream->context = context;
    streams.push_back(context->null_stream);
  }
  return context->null_stream;
}

bool is_null(const Stream *stream) { return stream == stream->context->null_stream; }

std::shared_ptr<Record> mark(Stream *stream) {
  auto record = std::make_shared<Record>();
  record->stream = stream;
  stream->pending.push_back({"record", [record] {
                               record->done = true;
                               record->milliseconds = now();
                               return 0;
                             },
                             nullptr});
  return record;
}

// The NULL stream and blocking streams wait for each other.
void join_null_stream(Stream *stream) {
  if (stream->non_blocking)
    return;
  for (Stream *other : std::vector<Stream *>(streams))
    if (other != stream && other->context == stream->context && !other->non_blocking && !other->pending.empty() &&
        (is_null(stream) || is_null(other))) {
      auto record = mark(other);
      stream->pending.push_back({"wait", [] { return 0; }, record});
    }
}

// Some streams, chosen by chance, advance by some operations.
void advance_by_chance() {
  while (chance().below(2) && !streams.empty())
    step(streams[chance().below(uint32_t(streams.size()))]);
}

// What follows an operation's arrival in the queue.
void progress(Stream *stream) {
  if (options().streams == Streams::eager ||
      (options().streams == Streams::late && stream->number != options().one_stream) ||
      (options().streams == Streams::early && stream->number == options().one_stream))
    drain(stream);
  else if (options().streams == Streams::random)
    advance_by_chance();
}

// The captured order, or with random streams any order that the dependencies allow.
std::vector<size_t> replay_order(const Graph &graph) {
  std::vector<size_t> order, free;
  std::vector<bool> placed(graph.nodes.size(), false);
  while (order.size() < graph.nodes.size()) {
    size_t n = order.size();
    if (options().streams == Streams::random) {
      free.clear();
      for (size_t i = 0; i < graph.nodes.size(); ++i) {
        const auto &after = graph.nodes[i].after;
        if (!placed[i] && std::all_of(after.begin(), after.end(), [&](size_t p) { return placed[p]; }))
          free.push_back(i);
      }
      n = free[chance().below(uint32_t(free.size()))];
    }
    placed[n] = true;
    order.push_back(n);
  }
  return order;
}

unsigned long long this_thread() { return (unsigned long long)pthread_self(); }

} // namespace

Stream *stream_of(void *handle) {
  if (handle == nullptr || handle == reinterpret_cast<void *>(1))
    return null_stream(current);
  auto found = std::find(streams.begin(), streams.end(), handle);
  return found == streams.end() || (*found)->context != current ? nullptr : *found;
}

Stream *create_stream(bool non_blocking) {
  auto *stream = new Stream;
  stream->context = current;
  stream->non_blocking = non_blocking;
  stream->number = ++streams_created;
  streams.push_back(stream);
  return stream;
}

int destroy_stream(Stream *stream) {
  if (is_null(stream))
    return INVALID_HANDLE;
  // The driver lets pending work finish.
  int error = drain(stream);
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return error;
}

int enqueue(Stream *stream, std::string what, std::function<int()> run) {
  if (stream->capture) {
    Graph *graph = stream->capture->graph;
    graph->nodes.push_back({std::move(what), std::move(run), stream->frontier});
    stream->frontier = {graph->nodes.size() - 1};
    return SUCCESS;
  }
  if (is_null(stream))
    for (Stream *other : streams)
      if (other->capture && !other->non_blocking) {
        other->capture->invalid = true;
        explain("%s on the NULL stream while a blocking stream is captured", what.c_str());
        return STREAM_CAPTURE_IMPLICIT;
      }
  join_null_stream(stream);
  stream->pending.push_back({std::move(what), std::move(run), nullptr});
  progress(stream);
  return SUCCESS;
}

bool step(Stream *stream) {
  if (stream->pending.empty())
    return false;
  Operation operation = std::move(stream->pending.front());
  stream->pending.pop_front();
  if (operation.waits)
    run_until(operation.waits);
  // After a fault nothing runs, and marks still count as passed so that waits end.
  if (!sticky_error || operation.what == "record")
    if (int error = operation.run())
      sticky_error = error;
  return true;
}

int run_until(const std::shared_ptr<Record> &record) {
  while (!record->done && step(record->stream)) {
  }
  return sticky_error;
}

int drain(Stream *stream) {
  while (step(stream)) {
  }
  return sticky_error;
}

int drain_all(Context *context) {
  for (Stream *stream : std::vector<Stream *>(streams))
    if (stream->context == context)
      drain(stream);
  return sticky_error;
}

int drain_blocking(Context *context) {
  for (Stream *stream : std::vector<Stream *>(streams))
    if (stream->context == context && !stream->non_blocking)
      drain(stream);
  return sticky_error;
}

bool is_event(void *handle) { return events.count(handle) != 0; }

Event *create_event(bool timing) {
  auto *event = new Event;
  event->timing = timing;
  events.insert(event);
  return event;
}

void destroy_event(Event *event) {
  events.erase(event);
  delete event;
}

int record(Event *event, Stream *stream) {
  event->capture = stream->capture;
  if (stream->capture) {
    event->nodes = stream->frontier;
    return SUCCESS;
  }
  join_null_stream(stream);
  event->last = mark(stream);
  progress(stream);
  return SUCCESS;
}

int wait_for(Stream *stream, Event *event) {
  if (event->capture) {
    if (!event->capture->graph)
      return CAPTURED_EVENT;
    if (event->capture->invalid)
      return STREAM_CAPTURE_INVALIDATED;
    if (stream->capture && stream->capture != event->capture) {
      stream->capture->invalid = event->capture->invalid = true;
      return STREAM_CAPTURE_MERGE;
    }
    // The wait draws the stream into the capture.
    stream->capture = event->capture;
    stream->frontier.insert(event->nodes.begin(), event->nodes.end());
    return SUCCESS;
  }
  if (stream->capture && event->last) {
    stream->capture->invalid = true;
    explain("a captured stream waits for an event recorded outside its capture");
    return STREAM_CAPTURE_ISOLATION;
  }
  if (!event->last || event->last->done)
    return SUCCESS;
  stream->pending.push_back({"wait", [] { return 0; }, event->last});
  progress(stream);
  return SUCCESS;
}

int forbid_during_capture(const char *what) {
  // Mode 2 is relaxed, 1 forbids to the capturing thread, 0 to all.
  for (Stream *stream : streams)
    if (stream->capture && stream->capture->mode != 2 &&
        (stream->capture->mode == 0 || stream->capture->thread == this_thread())) {
      stream->capture->invalid = true;
      explain("%s during a capture", what);
      return STREAM_CAPTURE_UNSUPPORTED;
    }
  return SUCCESS;
}

int begin_capture(Stream *stream, int mode) {
  if (is_null(stream)) {
    explain("the NULL stream cannot be captured");
    return STREAM_CAPTURE_UNSUPPORTED;
  }
  if (stream->capture)
    return INVALID_VALUE;
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  stream->capture->graph = new Graph;
  stream->capture->mode = mode;
  stream->capture->thread = this_thread();
  stream->frontier.clear();
  return SUCCESS;
}

int end_capture(Stream *stream, Graph **out) {
  *out = nullptr;
  if (!stream->capture)
    return INVALID_VALUE;
  std::shared_ptr<Capture> capture = stream->capture;
  if (capture->origin != stream)
    return STREAM_CAPTURE_UNMATCHED;
  // Every node must lead back to the stream where the capture began.
  std::set<size_t> reached = stream->frontier;
  for (size_t n = capture->graph->nodes.size(); n-- > 0;)
    if (reached.count(n))
      reached.insert(capture->graph->nodes[n].after.begin(), capture->graph->nodes[n].after.end());
  bool unjoined = reached.size() != capture->graph->nodes.size();
  for (Stream *other : streams)
    if (other->capture == capture) {
      other->capture = nullptr;
      other->frontier.clear();
    }
  Graph *graph = capture->graph;
  capture->graph = nullptr;
  if (capture->invalid || unjoined) {
    delete graph;
    return capture->invalid ? STREAM_CAPTURE_INVALIDATED : STREAM_CAPTURE_UNJOINED;
  }
  *out = graph;
  ++counts.captured;
  return SUCCESS;
}

int launch_graph(const Graph &graph, Stream *stream) {
  // The operations live on though the graph be destroyed before they run.
  auto nodes = std::make_shared<std::vector<std::function<int()>>>();
  for (size_t n : replay_order(graph))
    nodes->push_back(graph.nodes[n].run);
  ++counts.graph_launches;
  return enqueue(stream, "graph of " + std::to_string(nodes->size()) + " nodes", [nodes] {
    for (auto &run : *nodes) {
      if (int error = run())
        return error;
      ++counts.graph_nodes;
    }
    return 0;
  });
}

} // namespace cuda_host
