// Shadow memory: for every four bytes the accesses that a later one may race with.
#include "race.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <dlfcn.h>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "driver.hpp"
#include "memory.hpp"

namespace cuda_host::race {
namespace {

enum class Kind : uint8_t { read, write, atomic };

// Accesses of one kind by lanes of one warp at one time.
struct Access {
  // Position of the block in the grid, x fastest.
  uint64_t block;
  const void *code;
  // Barriers passed, and the lanes' count of warp operations.
  uint32_t epoch, clock;
  uint32_t lanes;
  uint8_t warp, bytes;
  Kind kind;
};

// `owner` is the launch, or for shared memory the block, whose accesses these are.
struct Cell {
  uint64_t owner = 0;
  std::vector<Access> accesses;
};

constexpr unsigned cell_bytes = 4, page_cells = 1024, warp_lanes = 32;

struct Page {
  Cell cells[page_cells];
};

struct CachedPage {
  uintptr_t number;
  Page *page;
};

struct Region {
  const char *begin, *end;
  bool shared;
};

// What a thread of a warp knows of the others: the last of their clocks it comes after.
struct WarpClocks {
  uint32_t known[warp_lanes][warp_lanes];
};

// What a block has published: its accesses of epochs before this one.
struct Published {
  uint64_t block;
  uint32_t epoch;
};

// What the running block has taken over: a block's accesses before one epoch, known after one of its own.
struct Taken {
  uint32_t before, after;
};

// A thread between an atomic operation and a fence, or the other way round.
struct Handshake {
  // One more than the epoch of the thread's last fence.
  uint32_t fenced = 0;
  std::vector<Published> met;
};

struct Race {
  Access earlier, later;
  Region region;
  const char *address;
};

struct Detector {
  const Launch *launch = nullptr;
  // Owners are numbered in one sequence, for shared memory may become global.
  uint64_t owners = 0, launch_owner = 0, block_owner = 0;
  // The block that runs.
  uint64_t block = 0;
  uint32_t epoch = 0;
  std::vector<WarpClocks> clocks;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
  // The pages used last, by the low bits of their numbers.
  CachedPage cached[256];
  std::vector<Region> fixed, recent;
  // By address of an atomic operation.
  std::unordered_map<uintptr_t, std::vector<Published>> published;
  // By thread of the running block, and by block.
  std::vector<Handshake> handshakes;
  std::unordered_map<uint64_t, Taken> taken;
  Race race{};
  bool found = false;
};

Detector &d = *new Detector{};

void add(const char *begin, const char *end) {
  if (begin != end)
    d.fixed.push_back({begin, end, true});
}

// Where an address lies; null for a thread's own memory and constants.
const Region *region_of(const char *address) {
  for (const auto *regions : {&d.fixed, &d.recent})
    for (const Region &r : *regions)
      if (address >= r.begin && address < r.end)
        return &r;
  const char *begin;
  size_t size;
  if (!memory::find(address, &begin, &size))
    return nullptr;
  d.recent.push_back({begin, begin + size, false});
  return &d.recent.back();
}

Cell &cell_of(uintptr_t number) {
  uintptr_t page_number = number / page_cells;
  CachedPage &cached = d.cached[page_number % 256];
  if (!cached.page || cached.number != page_number) {
    std::unique_ptr<Page> &page = d.pages[page_number];
    if (!page)
      page = std::make_unique<Page>();
    cached = {page_number, page.get()};
  }
  return cached.page->cells[number % page_cells];
}

bool conflict(Kind a, Kind b) { return a != b || a == Kind::write; }

bool ordered(const Access &earlier, const Access &now) {
  if (earlier.block != now.block) {
    auto found = d.taken.find(earlier.block);
    return found != d.taken.end() && earlier.epoch < found->second.before && now.epoch > found->second.after;
  }
  if (earlier.epoch != now.epoch)
    return true;
  if (earlier.warp != now.warp)
    return false;
  unsigned lane = unsigned(__builtin_ctz(now.lanes));
  const uint32_t *known = d.clocks[now.warp].known[lane];
  for (unsigned rest = earlier.lanes & ~now.lanes; rest; rest &= rest - 1)
    if (known[__builtin_ctz(rest)] < earlier.clock)
      return false;
  return true;
}

// Whether a later race with `earlier` is also one with `now`.
bool covered(const Access &earlier, const Access &now) {
  return (now.kind == Kind::write || now.kind == earlier.kind) && (earlier.bytes & ~now.bytes) == 0 &&
         ordered(earlier, now);
}

void access_cell(Cell &cell, const Access &now, const Region &region, const char *address) {
  uint64_t owner = region.shared ? d.block_owner : d.launch_owner;
  if (cell.owner != owner) {
    cell.owner = owner;
    cell.accesses.clear();
  }
  Access *same = nullptr;
  // Two other blocks of a kind are enough: any block differs from one of them. (A third that this block has not taken
  // over, where it has taken over the other two, would be missed.)
  uint64_t others[3][2];
  unsigned other_count[3] = {0, 0, 0};
  size_t kept = 0;
  for (size_t i = 0; i < cell.accesses.size(); ++i) {
    Access &a = cell.accesses[i];
    if ((a.bytes & now.bytes) && conflict(a.kind, now.kind) && !ordered(a, now)) {
      d.race = {a, now, region, address};
      d.found = true;
      fail_launch(LAUNCH_FAILED);
    }
    if (a.block != now.block && a.bytes == now.bytes) {
      unsigned kind = unsigned(a.kind), &count = other_count[kind];
      bool seen = (count > 0 && others[kind][0] == a.block) || (count > 1 && others[kind][1] == a.block);
      if (seen || count == 2)
        continue;
      others[kind][count++] = a.block;
    } else if (a.epoch == now.epoch && a.warp == now.warp && a.clock == now.clock && a.kind == now.kind &&
               a.bytes == now.bytes) {
      a.lanes |= now.lanes;
      same = &cell.accesses[kept];
    } else if (covered(a, now)) {
      continue;
    }
    if (kept != i)
      cell.accesses[kept] = a;
    ++kept;
  }
  cell.accesses.resize(kept);
  if (!same)
    cell.accesses.push_back(now);
}

// An atomic operation: publishes what a fence came after, meets what others have published.
void shake(unsigned linear, uintptr_t address) {
  std::vector<Published> &all = d.published[address];
  Handshake &h = d.handshakes[linear];
  for (const Published &p : all)
    if (p.block != d.block)
      h.met.push_back(p);
  if (h.fenced == d.epoch + 1)
    all.push_back({d.block, d.epoch});
}

void access(const void *pointer, size_t size, Kind kind, const void *code) {
  const char *address = static_cast<const char *>(pointer);
  if (d.found || !d.launch)
    return;
  const Region *region = region_of(address);
  if (!region)
    return;
  unsigned linear = cuda_host_current.slot.linear, warp = linear / warp_lanes, lane = linear % warp_lanes;
  Access now{d.block, code, d.epoch, d.clocks[warp].known[lane][lane], 1u << lane, uint8_t(warp), 0, kind};
  if (kind == Kind::atomic)
    shake(linear, uintptr_t(address));
  uintptr_t begin = uintptr_t(address), end = begin + size;
  for (uintptr_t number = begin / cell_bytes; number * cell_bytes < end; ++number) {
    uintptr_t first = std::max(begin, number * cell_bytes), last = std::min(end, (number + 1) * cell_bytes);
    now.bytes = uint8_t(((1u << (last - first)) - 1) << (first % cell_bytes));
    access_cell(cell_of(number), now, *region, reinterpret_cast<const char *>(first));
  }
}

std::string coordinates(const Index &i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

Index position(uint64_t linear, const Index &extent) {
  return {unsigned(linear % extent.x), unsigned(linear / extent.x % extent.y),
          unsigned(linear / extent.x / extent.y)};
}

// `file.cu:47` from an address in the module, by the tool that comes with the compiler; of inlined calls the innermost
// that is not the shim's.
std::string source_line(const void *code) {
  Dl_info info{};
  if (!dladdr(code, &info))
    return "?";
  char command[4200], line[512];
  snprintf(command, sizeof command, "unset LD_PRELOAD; addr2line -s -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
           size_t(static_cast<const char *>(code) - static_cast<const char *>(info.dli_fbase)) - 1);
  std::string found = "?";
  if (FILE *pipe = popen(command, "r")) {
    while (found == "?" && fgets(line, sizeof line, pipe)) {
      std::string text(line);
      if (text.rfind("shim.hpp", 0) != 0)
        found = text.substr(0, text.find_first_of(" \n"));
    }
    pclose(pipe);
  }
  return found;
}

std::string describe(const Access &a) {
  constexpr const char *kinds[] = {"read", "write", "atomic operation"};
  unsigned linear = a.warp * warp_lanes + unsigned(__builtin_ctz(a.lanes));
  return std::string(kinds[unsigned(a.kind)]) + " by thread " + coordinates(position(linear, d.launch->block)) +
         " of block " + coordinates(position(a.block, d.launch->grid)) + " at " + source_line(a.code);
}

} // namespace

void begin_launch(const Launch &launch, const void *dynamic_shared) {
  if (options().sanitizer != Sanitizer::thread)
    return;
  d.launch = &launch;
  d.launch_owner = ++d.owners;
  d.found = false;
  d.fixed.clear();
  d.recent.clear();
  d.published.clear();
  const Kernel &k = *launch.kernel;
  add(k.shared_begin, k.shared_end);
  add(k.common_begin, k.common_end);
  const char *dynamic = static_cast<const char *>(dynamic_shared);
  add(dynamic, dynamic + launch.dynamic_shared);
  // A page describes 4 KiB in some 32 KiB and more.
  if (d.pages.size() > 16384) {
    d.pages.clear();
    std::fill(std::begin(d.cached), std::end(d.cached), CachedPage{});
  }
  size_t threads = size_t(launch.block.x) * launch.block.y * launch.block.z;
  d.clocks.resize((threads + warp_lanes - 1) / warp_lanes);
  d.handshakes.resize(threads);
}

void end_launch() {
  if (d.found)
    explain("race in kernel %s on %s memory, offset %zu of %zu bytes: %s, and %s, with nothing to order them",
            d.launch->kernel->name, d.race.region.shared ? "shared" : "global",
            size_t(d.race.address - d.race.region.begin), size_t(d.race.region.end - d.race.region.begin),
            describe(d.race.earlier).c_str(), describe(d.race.later).c_str());
  d.launch = nullptr;
}

void begin_block(const Index &block) {
  if (!d.launch)
    return;
  const Index &grid = d.launch->grid;
  d.block = block.x + uint64_t(grid.x) * (block.y + uint64_t(grid.y) * block.z);
  d.block_owner = ++d.owners;
  d.epoch = 0;
  d.taken.clear();
  for (Handshake &h : d.handshakes) {
    h.fenced = 0;
    h.met.clear();
  }
  for (WarpClocks &w : d.clocks)
    for (unsigned i = 0; i < warp_lanes; ++i)
      for (unsigned j = 0; j < warp_lanes; ++j)
        w.known[i][j] = i == j;
}

void barrier() { ++d.epoch; }

void fence() {
  if (!d.launch)
    return;
  Handshake &h = d.handshakes[cuda_host_current.slot.linear];
  h.fenced = d.epoch + 1;
  for (const Published &p : h.met) {
    Taken &t = d.taken.try_emplace(p.block, Taken{0, 0}).first->second;
    if (p.epoch > t.before)
      t = {p.epoch, d.epoch};
  }
  h.met.clear();
}

void meet(unsigned warp, unsigned lanes) {
  if (!d.launch)
    return;
  WarpClocks &w = d.clocks[warp];
  uint32_t joint[warp_lanes] = {};
  for (unsigned l = 0; l < warp_lanes; ++l)
    if (lanes >> l & 1)
      for (unsigned k = 0; k < warp_lanes; ++k)
        joint[k] = std::max(joint[k], w.known[l][k]);
  for (unsigned l = 0; l < warp_lanes; ++l)
    if (lanes >> l & 1) {
      std::copy(joint, joint + warp_lanes, w.known[l]);
      ++w.known[l][l];
    }
}

} // namespace cuda_host::race

// What the compiler's instrumentation calls.
using cuda_host::race::access;
using cuda_host::race::Kind;
#define HERE __builtin_return_address(0)
#define PLAIN(size)                                                                                                   \
  void __tsan_read##size(void *p) { access(p, size, Kind::read, HERE); }                                              \
  void __tsan_write##size(void *p) { access(p, size, Kind::write, HERE); }                                            \
  void __tsan_unaligned_read##size(void *p) { access(p, size, Kind::read, HERE); }                                    \
  void __tsan_unaligned_write##size(void *p) { access(p, size, Kind::write, HERE); }
#define FETCH(bits, T, name)                                                                                          \
  T __tsan_atomic##bits##_fetch_##name(volatile T *p, T v, int) {                                                     \
    access(const_cast<T *>(p), sizeof(T), Kind::atomic, HERE);                                                        \
    return __atomic_fetch_##name(p, v, __ATOMIC_RELAXED);                                                             \
  }
#define COMPARE(bits, T, name)                                                                                        \
  int __tsan_atomic##bits##_compare_exchange_##name(volatile T *p, T *expected, T v, int, int) {                      \
    access(const_cast<T *>(p), sizeof(T), Kind::atomic, HERE);                                                        \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                    \
  }
#define ATOMIC(bits, T)                                                                                               \
  T __tsan_atomic##bits##_load(const volatile T *p, int) {                                                            \
    access(const_cast<T *>(p), sizeof(T), Kind::atomic, HERE);                                                        \
    return __atomic_load_n(p, __ATOMIC_RELAXED);                                                                      \
  }                                                                                                                   \
  void __tsan_atomic##bits##_store(volatile T *p, T v, int) {                                                         \
    access(const_cast<T *>(p), sizeof(T), Kind::atomic, HERE);                                                        \
    __atomic_store_n(p, v, __ATOMIC_RELAXED);                                                                         \
  }                                                                                                                   \
  T __tsan_atomic##bits##_exchange(volatile T *p, T v, int) {                                                         \
    access(const_cast<T *>(p), sizeof(T), Kind::atomic, HERE);                                                        \
    return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);                                                               \
  }                                                                                                                   \
  FETCH(bits, T, add)                                                                                                 \
  FETCH(bits, T, sub)                                                                                                 \
  FETCH(bits, T, and)                                                                                                 \
  FETCH(bits, T, or)                                                                                                  \
  FETCH(bits, T, xor)                                                                                                 \
  COMPARE(bits, T, strong)                                                                                            \
  COMPARE(bits, T, weak)

extern "C" {
void cuda_host_threadfence() { cuda_host::race::fence(); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)
void __tsan_read_range(void *p, size_t size) { access(p, size, Kind::read, HERE); }
void __tsan_write_range(void *p, size_t size) { access(p, size, Kind::write, HERE); }
ATOMIC(32, int)
ATOMIC(64, long long)
void __tsan_atomic_thread_fence(int) {}
}
