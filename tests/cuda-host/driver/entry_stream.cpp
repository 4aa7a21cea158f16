// Entry points: streams, events, graphs.
#include "driver.hpp"
#include "stream.hpp"

using namespace cuda_host;

namespace {

constexpr unsigned stream_non_blocking = 1, event_disable_timing = 2;

template <class Body> CUresult with_stream(const char *name, void *handle, Body body) {
  return entry(name, Needs::context, [&] {
    Stream *stream = stream_of(handle);
    return stream ? int(body(stream)) : int(INVALID_HANDLE);
  });
}

template <class Body> CUresult with_event(const char *name, void *handle, Body body) {
  return entry(name, Needs::context,
               [&] { return is_event(handle) ? int(body(static_cast<Event *>(handle))) : int(INVALID_HANDLE); });
}

// Waiting for a stream that is being captured spoils the capture.
int check_not_captured(Stream *stream, const char *what) {
  if (!stream->capture)
    return SUCCESS;
  stream->capture->invalid = true;
  explain("%s on a stream that is being captured", what);
  return STREAM_CAPTURE_UNSUPPORTED;
}

std::set<void *> &graphs = *new std::set<void *>, &executables = *new std::set<void *>;

} // namespace

extern "C" {

CUresult cuStreamCreate(Stream **out, unsigned flags) {
  return entry("cuStreamCreate", Needs::context, [&] {
    *out = create_stream(flags & stream_non_blocking);
    return SUCCESS;
  });
}

CUresult cuStreamCreateWithPriority(Stream **out, unsigned flags, int) { return cuStreamCreate(out, flags); }

CUresult cuStreamDestroy_v2(void *handle) { return with_stream("cuStreamDestroy_v2", handle, destroy_stream); }

CUresult cuStreamSynchronize(void *handle) {
  return with_stream("cuStreamSynchronize", handle, [](Stream *stream) {
    if (int error = check_not_captured(stream, "cuStreamSynchronize"))
      return error;
    log_line("synchronize stream %u", stream->number);
    int error = drain(stream);
    counts.write();
    return error;
  });
}

CUresult cuStreamQuery(void *handle) {
  return with_stream("cuStreamQuery", handle, [](Stream *stream) {
    if (int error = check_not_captured(stream, "cuStreamQuery"))
      return error;
    // Asking again and again ends: each question lets one operation through.
    return step(stream) ? int(NOT_READY) : sticky_error;
  });
}

CUresult cuStreamWaitEvent(void *handle, void *event, unsigned) {
  return with_stream("cuStreamWaitEvent", handle, [&](Stream *stream) {
    return is_event(event) ? wait_for(stream, static_cast<Event *>(event)) : int(INVALID_HANDLE);
  });
}

CUresult cuLaunchHostFunc(void *handle, void (*function)(void *), void *data) {
  return with_stream("cuLaunchHostFunc", handle, [&](Stream *stream) {
    return enqueue(stream, "host function", [=] {
      function(data);
      return 0;
    });
  });
}

CUresult cuStreamBeginCapture_v2(void *handle, int mode) {
  return with_stream("cuStreamBeginCapture_v2", handle, [&](Stream *stream) { return begin_capture(stream, mode); });
}

CUresult cuStreamEndCapture(void *handle, Graph **out) {
  return with_stream("cuStreamEndCapture", handle, [&](Stream *stream) {
    int error = end_capture(stream, out);
    if (*out)
      graphs.insert(*out);
    return error;
  });
}

CUresult cuStreamIsCapturing(void *handle, int *status) {
  return with_stream("cuStreamIsCapturing", handle, [&](Stream *stream) {
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return SUCCESS;
  });
}

CUresult cuEventCreate(Event **out, unsigned flags) {
  return entry("cuEventCreate", Needs::context, [&] {
    *out = create_event(!(flags & event_disable_timing));
    return SUCCESS;
  });
}

CUresult cuEventDestroy_v2(void *handle) {
  return with_event("cuEventDestroy_v2", handle, [](Event *event) {
    destroy_event(event);
    return SUCCESS;
  });
}

CUresult cuEventRecord(void *handle, void *stream_handle) {
  return with_event("cuEventRecord", handle, [&](Event *event) {
    Stream *stream = stream_of(stream_handle);
    return stream ? record(event, stream) : int(INVALID_HANDLE);
  });
}

CUresult cuEventRecordWithFlags(void *handle, void *stream, unsigned) { return cuEventRecord(handle, stream); }

CUresult cuEventSynchronize(void *handle) {
  return with_event("cuEventSynchronize", handle, [](Event *event) {
    if (event->capture)
      return int(CAPTURED_EVENT);
    return event->last ? run_until(event->last) : int(SUCCESS);
  });
}

CUresult cuEventQuery(void *handle) {
  return with_event("cuEventQuery", handle, [](Event *event) {
    if (event->capture)
      return int(CAPTURED_EVENT);
    if (!event->last || event->last->done)
      return int(SUCCESS);
    step(event->last->stream);
    return sticky_error ? sticky_error : int(NOT_READY);
  });
}

CUresult cuEventElapsedTime_v2(float *milliseconds, void *begin_handle, void *end_handle) {
  return with_event("cuEventElapsedTime_v2", begin_handle, [&](Event *begin) {
    if (!is_event(end_handle))
      return INVALID_HANDLE;
    auto *end = static_cast<Event *>(end_handle);
    if (!begin->timing || !end->timing || !begin->last || !end->last)
      return INVALID_HANDLE;
    if (!begin->last->done || !end->last->done)
      return NOT_READY;
    *milliseconds = float(end->last->milliseconds - begin->last->milliseconds);
    return SUCCESS;
  });
}
CUresult cuEventElapsedTime(float *milliseconds, void *begin, void *end) {
  return cuEventElapsedTime_v2(milliseconds, begin, end);
}

CUresult cuGraphInstantiateWithFlags(Graph **out, Graph *graph, unsigned long long) {
  return entry("cuGraphInstantiateWithFlags", Needs::context, [&] {
    if (!graphs.count(graph))
      return INVALID_VALUE;
    *out = new Graph(*graph);
    executables.insert(*out);
    ++counts.instantiated;
    return SUCCESS;
  });
}

CUresult cuGraphUpload(Graph *executable, void *handle) {
  return with_stream("cuGraphUpload", handle,
                     [&](Stream *) { return executables.count(executable) ? SUCCESS : INVALID_VALUE; });
}

CUresult cuGraphLaunch(Graph *executable, void *handle) {
  return with_stream("cuGraphLaunch", handle, [&](Stream *stream) {
    if (!executables.count(executable))
      return int(INVALID_VALUE);
    log_line("launch graph of %zu nodes stream %u", executable->nodes.size(), stream->number);
    return launch_graph(*executable, stream);
  });
}

CUresult cuGraphGetNodes(Graph *graph, void **nodes, size_t *count) {
  return entry("cuGraphGetNodes", Needs::context, [&] {
    // Nodes are only counted: they have no handles.
    if (nodes)
      return NOT_SUPPORTED;
    if (!graphs.count(graph))
      return INVALID_VALUE;
    *count = graph->nodes.size();
    return SUCCESS;
  });
}

CUresult cuGraphDestroy(Graph *graph) {
  return entry("cuGraphDestroy", Needs::context, [&] {
    if (!graphs.erase(graph))
      return INVALID_VALUE;
    delete graph;
    return SUCCESS;
  });
}

CUresult cuGraphExecDestroy(Graph *executable) {
  return entry("cuGraphExecDestroy", Needs::context, [&] {
    if (!executables.erase(executable))
      return INVALID_VALUE;
    delete executable;
    return SUCCESS;
  });
}

} // extern "C"
