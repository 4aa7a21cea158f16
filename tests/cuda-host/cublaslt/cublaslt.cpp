// The library's functions. Products go through the driver's streams, so that they run, wait and are captured as launches
// are. As strict as the documents allow: an algorithm is for the problem, the alignment and the workspace that it was
// asked for, and code may not be loaded while a graph is recorded.
#include <cstring>
#include <set>

#include "driver/driver.hpp"
#include "driver/stream.hpp"
#include "library/objects.hpp"
#include "product.hpp"

using namespace cublaslt;
using cuda_host::explain;
using library::call;
using library::is;

namespace {

constexpr size_t version = 120900;
// What algorithms that may use a workspace take.
constexpr size_t workspace_bytes = 1 << 20;
constexpr uint64_t magic = 0x746c73616c627563;

struct Handle {
  cuda_host::Context *context;
};

struct Preference {
  uint64_t workspace = 0;
  uint32_t reduction = 7;
  uint32_t alignment[4] = {256, 256, 256, 256};
};

// The eight words that callers keep for us.
struct Algorithm {
  uint64_t magic, problem, workspace, parts;
  uint32_t alignment[4];
  uint64_t unused[2];
};
static_assert(sizeof(Algorithm) == 64);

struct Found {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

template <class T> int make(const char *name, T **out, T value) {
  return library::make<INVALID_VALUE>(name, out, value);
}

template <class T> int destroy(const char *name, T *object) { return library::destroy<INVALID_VALUE>(name, object); }

// An attribute that is set from a caller's value of the right size.
struct Attribute {
  void *to;
  size_t size;
};

template <class T, class Find>
int set(const char *name, T *object, int number, const void *value, size_t size, Find find) {
  return call(name, [&] {
    if (!is(object) || !value)
      return INVALID_VALUE;
    Attribute attribute = find(number);
    if (!attribute.to || attribute.size != size) {
      explain("%s: attribute %d of %zu bytes is not modelled", name, number, size);
      return INVALID_VALUE;
    }
    memcpy(attribute.to, value, size);
    return SUCCESS;
  });
}

template <class T> Attribute to(T &field) { return {&field, sizeof field}; }

// What tells problems apart (FNV-1a of their numbers).
uint64_t identity(const Description &o, const Layout &a, const Layout &b, const Layout &c, const Layout &d) {
  uint64_t hash = 14695981039346656037u;
  auto mix = [&](uint64_t x) { hash = (hash ^ x) * 1099511628211u; };
  mix(uint64_t(o.compute)), mix(uint64_t(o.transposed[0])), mix(uint64_t(o.transposed[1])), mix(o.epilogue);
  for (const Layout *l : {&a, &b, &c, &d})
    mix(l->rows), mix(l->cols), mix(uint64_t(l->leading)), mix(uint64_t(l->batch)), mix(uint64_t(l->stride));
  return hash;
}

bool aligned(const void *pointer, uint32_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

} // namespace

extern "C" {

size_t cublasLtGetVersion() {
  // No status: the number that is injected is the version.
  std::lock_guard<std::recursive_mutex> hold(cuda_host::lock);
  int other = cuda_host::injected("cublasLtGetVersion");
  return other ? size_t(other) : version;
}

int cublasLtCreate(Handle **out) {
  if (!cuda_host::current)
    return NOT_INITIALIZED;
  return make("cublasLtCreate", out, Handle{cuda_host::current});
}
int cublasLtDestroy(Handle *handle) { return destroy("cublasLtDestroy", handle); }

int cublasLtMatmulDescCreate(Description **out, int compute, int scale) {
  Description description;
  description.compute = compute, description.scale = scale;
  bool known = compute == COMPUTE_32F || compute == COMPUTE_32F_FAST_TF32 || compute == COMPUTE_32F_FAST_16BF;
  return known && scale == R_32F ? make("cublasLtMatmulDescCreate", out, description) : int(INVALID_VALUE);
}
int cublasLtMatmulDescDestroy(Description *object) { return destroy("cublasLtMatmulDescDestroy", object); }
int cublasLtMatmulDescSetAttribute(Description *object, int number, const void *value, size_t size) {
  return set("cublasLtMatmulDescSetAttribute", object, number, value, size, [&](int attribute) -> Attribute {
    switch (attribute) {
    case 3: return to(object->transposed[0]);
    case 4: return to(object->transposed[1]);
    case 7: return to(object->epilogue);
    case 8: return to(object->bias);
    default: return {};
    }
  });
}

int cublasLtMatrixLayoutCreate(Layout **out, int type, uint64_t rows, uint64_t cols, int64_t leading) {
  Layout layout;
  layout.type = type, layout.rows = rows, layout.cols = cols, layout.leading = leading;
  return make("cublasLtMatrixLayoutCreate", out, layout);
}
int cublasLtMatrixLayoutDestroy(Layout *object) { return destroy("cublasLtMatrixLayoutDestroy", object); }
int cublasLtMatrixLayoutSetAttribute(Layout *object, int number, const void *value, size_t size) {
  return set("cublasLtMatrixLayoutSetAttribute", object, number, value, size, [&](int attribute) -> Attribute {
    switch (attribute) {
    case 5: return to(object->batch);
    case 6: return to(object->stride);
    default: return {};
    }
  });
}

int cublasLtMatmulPreferenceCreate(Preference **out) { return make("cublasLtMatmulPreferenceCreate", out, Preference{}); }
int cublasLtMatmulPreferenceDestroy(Preference *object) { return destroy("cublasLtMatmulPreferenceDestroy", object); }
int cublasLtMatmulPreferenceSetAttribute(Preference *object, int number, const void *value, size_t size) {
  return set("cublasLtMatmulPreferenceSetAttribute", object, number, value, size, [&](int attribute) -> Attribute {
    switch (attribute) {
    case 1: return to(object->workspace);
    case 3: return to(object->reduction);
    case 5: case 6: case 7: case 8: return to(object->alignment[attribute - 5]);
    default: return {};
    }
  });
}

int cublasLtMatmulAlgoGetHeuristic(Handle *handle, Description *description, Layout *a, Layout *b, Layout *c, Layout *d,
                                   Preference *preference, int wanted, Found *found, int *count) {
  return call("cublasLtMatmulAlgoGetHeuristic", [&] {
    if (!is(handle))
      return NOT_INITIALIZED;
    if (!is(description) || !is(a) || !is(b) || !is(c) || !is(d) || !is(preference) || wanted < 1 || !found || !count)
      return INVALID_VALUE;
    if (!sound(*description, *a, *b, *c, *d))
      return INVALID_VALUE;
    *count = 0;
    for (uint32_t alignment : preference->alignment)
      if (alignment < sizeof(float))
        return NOT_SUPPORTED;
    auto add = [&](uint64_t workspace) {
      if (*count == wanted)
        return;
      Algorithm algorithm{magic, identity(*description, *a, *b, *c, *d), workspace, preference->reduction != 0, {}, {}};
      memcpy(algorithm.alignment, preference->alignment, sizeof algorithm.alignment);
      found[(*count)++] = {algorithm, size_t(workspace), SUCCESS, 1, {}};
    };
    // The faster one first, as the real library does.
    if (preference->workspace >= workspace_bytes)
      add(workspace_bytes);
    add(0);
    return SUCCESS;
  });
}

int cublasLtMatmul(Handle *handle, Description *description, const float *alpha, const void *pa, Layout *a, const void *pb,
                   Layout *b, const float *beta, const void *pc, Layout *c, void *pd, Layout *d,
                   const Algorithm *algorithm, void *workspace, size_t bytes, void *stream_handle) {
  return call("cublasLtMatmul", [&] {
    auto refuse = [](Status status, const char *why) {
      explain("cublasLtMatmul: %s", why);
      return status;
    };
    if (!is(handle) || !cuda_host::current || handle->context != cuda_host::current)
      return refuse(NOT_INITIALIZED, "no handle of this context");
    if (cuda_host::sticky_error)
      return EXECUTION_FAILED;
    if (!is(description) || !is(a) || !is(b) || !is(c) || !is(d) || !alpha || !beta || !pa || !pb || !pd)
      return refuse(INVALID_VALUE, "an argument is null, or given back");
    if (*beta != 0 && !pc)
      return refuse(INVALID_VALUE, "nothing to add");
    if (!sound(*description, *a, *b, *c, *d))
      return INVALID_VALUE;
    if (!algorithm || algorithm->magic != magic)
      return refuse(INVALID_VALUE, "an algorithm that was not asked for");
    if (algorithm->problem != identity(*description, *a, *b, *c, *d))
      return refuse(NOT_SUPPORTED, "an algorithm for another problem");
    const void *pointers[] = {pa, pb, pc ? pc : pd, pd};
    for (int i = 0; i < 4; ++i)
      if (!aligned(pointers[i], algorithm->alignment[i]))
        return refuse(INVALID_VALUE, "a matrix is aligned less than the algorithm was told");
    if ((description->epilogue & BIAS) && !aligned(description->bias, 16))
      return refuse(INVALID_VALUE, "the bias is not aligned to 16 bytes");
    if (bytes < algorithm->workspace || (algorithm->workspace && !workspace))
      return refuse(INVALID_VALUE, "the algorithm needs more workspace");
    cuda_host::Stream *stream = cuda_host::stream_of(stream_handle);
    if (!stream)
      return refuse(INVALID_VALUE, "no such stream");
    // Code of a kind of product is loaded when it is first used.
    static auto &loaded = *new std::set<uint64_t>;
    if (!loaded.count(algorithm->problem)) {
      if (cuda_host::forbid_during_capture("cublasLtMatmul loads its code"))
        return INTERNAL_ERROR;
      loaded.insert(algorithm->problem);
    }
    Product p{*description, *a, *b, *c, *d, *alpha, *beta, static_cast<const float *>(pa), static_cast<const float *>(pb),
              static_cast<const float *>(pc), static_cast<float *>(pd), algorithm->parts != 0};
    cuda_host::log_line("cublasLtMatmul %llu x %llu stream %u%s", (unsigned long long)d->rows,
                        (unsigned long long)d->cols, stream->number, stream->capture ? " captured" : "");
    return cuda_host::enqueue(stream, "cublasLtMatmul", [p] { return run(p); }) ? EXECUTION_FAILED : SUCCESS;
  });
}

} // extern "C"
