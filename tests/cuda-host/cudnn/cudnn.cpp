// The library's functions. Convolutions go through the driver's streams, so that they run, wait and are captured as launches
// are. As strict as the documents allow: tensors whose channels lie together only, padding on both sides, an algorithm that
// is given less workspace than it said, code that may not be loaded while a graph is recorded.
#include "convolution.hpp"

#include <set>

#include "driver/driver.hpp"
#include "driver/stream.hpp"
#include "library/objects.hpp"

using namespace cudnn;
using cuda_host::explain;
using library::call;
using library::is;

namespace {

constexpr size_t version = 91000, built_for = 12090;
// What the fastest algorithm asks for, a quick one that adds in any order, and one that is slow.
constexpr size_t much = size_t(1) << 30, some = 4096;

struct Handle {
  cuda_host::Context *context;
  void *stream = nullptr;
};

struct ActivationDescription {
  int mode = IDENTITY;
  int propagates_nan = 0;
};

template <class T> int make(const char *name, T **out) {
  return library::make<BAD_PARAM>(name, out, T());
}

template <class T> int destroy(const char *name, T *object) { return library::destroy<BAD_PARAM>(name, object); }

Status bad(const char *name, const char *why) {
  explain("%s: %s", name, why);
  return BAD_PARAM;
}

template <class T> int set_extents(const char *name, T *object, int format, int type, const int (&extents)[4]) {
  return call(name, [&] {
    if (!is(object))
      return bad(name, "no such object");
    if (format != NHWC || type != FLOAT)
      return bad(name, "only f32 whose channels lie together is modelled");
    for (int e : extents)
      if (e < 1)
        return bad(name, "an extent is not positive");
    std::copy(extents, extents + 4, object->extents);
    return SUCCESS;
  });
}

// What the library says of an algorithm; `algorithm` is one of the direction's.
struct Performance {
  int algorithm, status;
  float time;
  size_t memory;
  int deterministic, math;
  int reserved[3];
};

// Of every direction: 0 and 1 are plain, 5 and 7 stand for those that need much memory. Of the gradients, 0 adds in any
// order. The order is that of their speed.
int rank(const char *name, Direction direction, Handle *handle, const Tensor *x, const Filter *w, const Operation *o,
         const Tensor *y, int wanted, int *count, Performance *found) {
  return call(name, [&] {
    if (!is(handle))
      return NOT_INITIALIZED;
    if (!is(x) || !is(w) || !is(o) || !is(y) || wanted < 1 || !count || !found)
      return bad(name, "an argument is null, or given back");
    if (!sound(*x, *w, *o, *y))
      return BAD_PARAM;
    *count = 0;
    int math = o->math;
    auto add = [&](int algorithm, Status status, size_t memory, bool deterministic, int multiplies) {
      if (*count < wanted)
        found[(*count)++] = {algorithm, status, status ? -1.0f : 1.0f, memory, deterministic, multiplies, {}};
    };
    bool gradient = direction != Direction::forward;
    if (math != FMA_MATH)
      add(1, SUCCESS, some, true, TENSOR_OP_MATH_ALLOW_CONVERSION);
    add(gradient ? 5 : 7, SUCCESS, much, true, math);
    if (gradient)
      add(0, SUCCESS, 0, false, math);
    // Not every algorithm is for every problem.
    add(gradient ? 4 : 6, NOT_SUPPORTED, 0, true, math);
    add(1, SUCCESS, some, true, math == DEFAULT_MATH ? TENSOR_OP_MATH : math);
    if (!gradient)
      add(0, SUCCESS, 0, true, math);
    return SUCCESS;
  });
}

struct Call {
  Direction direction;
  Handle *handle;
  const Tensor *x, *y;
  const Filter *w;
  const Operation *operation;
  const float *alpha, *beta;
  void *px, *pw, *py;
  int algorithm;
  void *workspace;
  size_t bytes;
  const float *bias = nullptr;
  bool relu = false;
};

int queue(const char *name, const Call &a) {
  if (!is(a.handle) || !cuda_host::current || a.handle->context != cuda_host::current)
    return explain("%s: no handle of this context", name), NOT_INITIALIZED;
  if (cuda_host::sticky_error)
    return EXECUTION_FAILED;
  if (!is(a.x) || !is(a.w) || !is(a.operation) || !is(a.y) || !a.alpha || !a.beta || !a.px || !a.pw || !a.py)
    return bad(name, "an argument is null, or given back");
  if (!sound(*a.x, *a.w, *a.operation, *a.y))
    return BAD_PARAM;
  bool gradient = a.direction != Direction::forward;
  bool zero = a.algorithm == 0, one = a.algorithm == 1;
  if (!zero && !one && a.algorithm != (gradient ? 5 : 7))
    return explain("%s: algorithm %d is not for this problem", name, a.algorithm), NOT_SUPPORTED;
  size_t needed = zero ? 0 : one ? some : much;
  if (a.bytes < needed || (needed && !a.workspace))
    return bad(name, "the algorithm needs more workspace");
  cuda_host::Stream *stream = cuda_host::stream_of(a.handle->stream);
  if (!stream)
    return bad(name, "no such stream");
  // Code of a kind of convolution is loaded when it is first used.
  static auto &loaded = *new std::set<std::pair<int, int>>;
  auto kind = std::make_pair(int(a.direction), a.algorithm);
  if (!loaded.count(kind)) {
    if (cuda_host::forbid_during_capture("cudnn loads its code"))
      return INTERNAL_ERROR;
    loaded.insert(kind);
  }
  Convolution c{a.direction, *a.x, *a.y, *a.w, *a.operation, static_cast<float *>(a.px), static_cast<float *>(a.pw),
                static_cast<float *>(a.py), *a.alpha, *a.beta, a.bias, a.relu, static_cast<unsigned char *>(a.workspace),
                needed, gradient && zero};
  cuda_host::log_line("%s stream %u%s", name, stream->number, stream->capture ? " captured" : "");
  return cuda_host::enqueue(stream, name, [c, name] { return run(c, name); }) ? EXECUTION_FAILED : SUCCESS;
}

// The numbers are read during the call, but not written through.
void *operand(const void *p) { return const_cast<void *>(p); }

} // namespace

extern "C" {

size_t cudnnGetVersion() {
  // No status: the number that is injected is the version.
  std::lock_guard<std::recursive_mutex> hold(cuda_host::lock);
  int other = cuda_host::injected("cudnnGetVersion");
  return other ? size_t(other) : version;
}
size_t cudnnGetCudartVersion() {
  std::lock_guard<std::recursive_mutex> hold(cuda_host::lock);
  int other = cuda_host::injected("cudnnGetCudartVersion");
  return other ? size_t(other) : built_for;
}

int cudnnCreate(Handle **out) {
  if (!cuda_host::current)
    return NOT_INITIALIZED;
  return library::make<BAD_PARAM>("cudnnCreate", out, Handle{cuda_host::current});
}
int cudnnDestroy(Handle *handle) { return destroy("cudnnDestroy", handle); }
int cudnnSetStream(Handle *handle, void *stream) {
  return call("cudnnSetStream", [&] {
    if (!is(handle) || !cuda_host::stream_of(stream))
      return bad("cudnnSetStream", "no such handle, or no such stream");
    handle->stream = stream;
    return SUCCESS;
  });
}

int cudnnCreateTensorDescriptor(Tensor **out) { return make("cudnnCreateTensorDescriptor", out); }
int cudnnDestroyTensorDescriptor(Tensor *t) { return destroy("cudnnDestroyTensorDescriptor", t); }
int cudnnSetTensor4dDescriptor(Tensor *t, int format, int type, int n, int c, int h, int w) {
  return set_extents("cudnnSetTensor4dDescriptor", t, format, type, {n, c, h, w});
}

int cudnnCreateFilterDescriptor(Filter **out) { return make("cudnnCreateFilterDescriptor", out); }
int cudnnDestroyFilterDescriptor(Filter *f) { return destroy("cudnnDestroyFilterDescriptor", f); }
int cudnnSetFilter4dDescriptor(Filter *f, int type, int format, int k, int c, int r, int s) {
  return set_extents("cudnnSetFilter4dDescriptor", f, format, type, {k, c, r, s});
}

int cudnnCreateConvolutionDescriptor(Operation **out) { return make("cudnnCreateConvolutionDescriptor", out); }
int cudnnDestroyConvolutionDescriptor(Operation *o) { return destroy("cudnnDestroyConvolutionDescriptor", o); }
int cudnnSetConvolution2dDescriptor(Operation *o, int pad_h, int pad_w, int step_h, int step_w, int apart_h, int apart_w,
                                    int mode, int type) {
  return call("cudnnSetConvolution2dDescriptor", [&] {
    const char *name = "cudnnSetConvolution2dDescriptor";
    if (!is(o) || pad_h < 0 || pad_w < 0 || step_h < 1 || step_w < 1 || apart_h < 1 || apart_w < 1)
      return bad(name, "no such object, or a number that is none of a convolution");
    if (mode != CROSS_CORRELATION || type != FLOAT)
      return bad(name, "only cross-correlation with f32 sums is modelled");
    Operation set;
    set.pads[0] = pad_h, set.pads[1] = pad_w, set.strides[0] = step_h, set.strides[1] = step_w;
    set.dilations[0] = apart_h, set.dilations[1] = apart_w;
    *o = set;
    return SUCCESS;
  });
}
int cudnnSetConvolutionGroupCount(Operation *o, int groups) {
  return call("cudnnSetConvolutionGroupCount", [&] {
    if (!is(o) || groups < 1)
      return bad("cudnnSetConvolutionGroupCount", "no such object, or no group");
    o->groups = groups;
    return SUCCESS;
  });
}
int cudnnSetConvolutionMathType(Operation *o, int math) {
  return call("cudnnSetConvolutionMathType", [&] {
    if (!is(o) || math < DEFAULT_MATH || math > FMA_MATH)
      return bad("cudnnSetConvolutionMathType", "no such object, or no such arithmetic");
    o->math = math;
    return SUCCESS;
  });
}

int cudnnCreateActivationDescriptor(ActivationDescription **out) { return make("cudnnCreateActivationDescriptor", out); }
int cudnnDestroyActivationDescriptor(ActivationDescription *a) { return destroy("cudnnDestroyActivationDescriptor", a); }
int cudnnSetActivationDescriptor(ActivationDescription *a, int mode, int nan, double) {
  return call("cudnnSetActivationDescriptor", [&] {
    if (!is(a) || (mode != RELU && mode != IDENTITY))
      return bad("cudnnSetActivationDescriptor", "no such object, or an activation that is not modelled");
    *a = {mode, nan};
    return SUCCESS;
  });
}

int cudnnGetConvolutionForwardAlgorithm_v7(Handle *handle, Tensor *x, Filter *w, Operation *o, Tensor *y, int wanted,
                                           int *count, Performance *found) {
  return rank("cudnnGetConvolutionForwardAlgorithm_v7", Direction::forward, handle, x, w, o, y, wanted, count, found);
}
int cudnnGetConvolutionBackwardDataAlgorithm_v7(Handle *handle, Filter *w, Tensor *dy, Operation *o, Tensor *dx, int wanted,
                                                int *count, Performance *found) {
  return rank("cudnnGetConvolutionBackwardDataAlgorithm_v7", Direction::data, handle, dx, w, o, dy, wanted, count, found);
}
int cudnnGetConvolutionBackwardFilterAlgorithm_v7(Handle *handle, Tensor *x, Tensor *dy, Operation *o, Filter *dw,
                                                  int wanted, int *count, Performance *found) {
  return rank("cudnnGetConvolutionBackwardFilterAlgorithm_v7", Direction::filter, handle, x, dw, o, dy, wanted, count,
              found);
}

int cudnnConvolutionForward(Handle *handle, const float *alpha, Tensor *x, const void *px, Filter *w, const void *pw,
                            Operation *o, int algorithm, void *workspace, size_t bytes, const float *beta, Tensor *y,
                            void *py) {
  const char *name = "cudnnConvolutionForward";
  Call a{Direction::forward, handle, x, y, w, o, alpha, beta, operand(px), operand(pw), py, algorithm, workspace, bytes};
  return call(name, [&] { return queue(name, a); });
}

int cudnnConvolutionBiasActivationForward(Handle *handle, const float *alpha, Tensor *x, const void *px, Filter *w,
                                          const void *pw, Operation *o, int algorithm, void *workspace, size_t bytes,
                                          const float *beta, Tensor *z, const void *pz, Tensor *bias, const float *pb,
                                          ActivationDescription *activation, Tensor *y, void *py) {
  const char *name = "cudnnConvolutionBiasActivationForward";
  return call(name, [&] {
    if (!is(bias) || !is(activation) || !is(z) || !pb || !pz || !beta)
      return int(bad(name, "an argument is null, or given back"));
    int channels[4] = {1, is(y) ? y->extents[1] : 0, 1, 1};
    if (!std::equal(channels, channels + 4, bias->extents))
      return int(bad(name, "the bias is not a number for each channel"));
    if (activation->mode == IDENTITY && algorithm != 1)
      return explain("%s: an identity in another algorithm than IMPLICIT_PRECOMP_GEMM", name), int(NOT_SUPPORTED);
    if (*beta != 0)
      return int(bad(name, "a second summand is not modelled"));
    if (activation->propagates_nan)
      return int(bad(name, "the plan's ReLU makes zero of NaN"));
    Call a{Direction::forward, handle, x, y, w, o, alpha, beta, operand(px), operand(pw), py, algorithm, workspace, bytes,
           pb, activation->mode == RELU};
    return queue(name, a);
  });
}

int cudnnConvolutionBackwardData(Handle *handle, const float *alpha, Filter *w, const void *pw, Tensor *dy, const void *pdy,
                                 Operation *o, int algorithm, void *workspace, size_t bytes, const float *beta, Tensor *dx,
                                 void *pdx) {
  const char *name = "cudnnConvolutionBackwardData";
  Call a{Direction::data, handle, dx, dy, w, o, alpha, beta, pdx, operand(pw), operand(pdy), algorithm, workspace, bytes};
  return call(name, [&] { return queue(name, a); });
}

int cudnnConvolutionBackwardFilter(Handle *handle, const float *alpha, Tensor *x, const void *px, Tensor *dy,
                                   const void *pdy, Operation *o, int algorithm, void *workspace, size_t bytes,
                                   const float *beta, Filter *dw, void *pdw) {
  const char *name = "cudnnConvolutionBackwardFilter";
  Call a{Direction::filter, handle, x, dy, dw, o, alpha, beta, operand(px), pdw, operand(pdy), algorithm, workspace, bytes};
  return call(name, [&] { return queue(name, a); });
}

} // extern "C"
