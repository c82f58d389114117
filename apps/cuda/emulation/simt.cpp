// Runs launches of a plan: block after block, the threads of a block as fibers, every access checked before it happens.
//
// A fault is one line on standard output and exit status 3. What a kernel could do to this process does not matter: it
// is in a sandbox, the expected output is elsewhere, and the parent compares bytes.
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>
#undef memcpy
#undef memset
#include <string.h>
#include <stdint.h>
#include <stddef.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct dim3 { unsigned x, y, z; };
struct uint3 { unsigned x, y, z; };
extern char __executable_start, _end;

namespace simt {
struct Place { uint3 thread, block; dim3 block_size, grid_size; };
union Value { void* pointer; uint64_t bits; float f; double d; };
typedef void (*Call)(const Value*);
struct Entry { const char* name; Call call; };
extern const Entry kernels[];
extern const unsigned kernel_count;
static Place current;
Place* here = &current;

enum State { READY, AT_BARRIER, AT_MEETING, GONE };
const size_t STACK = 256 << 10, ARENA = 256 << 10, MOST_RECORDED = 4096;

struct Fiber {
  Place place;
  unsigned linear, lane, warp;
  State state;
  uint32_t epoch, meetings;   // barriers and warp meetings passed: what orders accesses of two threads
  int site, kind, predicate, result;
  unsigned mask; int operation; uint64_t value, got[32];
  char* stack;
  void* sp;
  void* pc;                   // of the warp operation it waits in
  std::vector<uint64_t> global, shared;   // addresses of the first block, for counting
#if !defined(__x86_64__)
  ucontext_t context;
#endif
};

struct Cell {   // who touched these bytes last: one writer, two readers
  uint64_t serial; uint32_t epoch, meetings, fences; int thread; uint32_t block; bool atomic;
  uint64_t read_serial[2]; uint32_t read_epoch[2], read_meetings[2], read_block[2]; int reader[2]; bool read_atomic[2];
};

enum Kind { INPUT, OUTPUT, SCRATCH, SHARED };
struct Region { uintptr_t start, end; Kind kind; int index; size_t grain; std::vector<Cell> cells; std::vector<bool> filled; };

static std::vector<Fiber> fibers;
static uint64_t got_now[32];                    // what the last meeting of the running fiber gave
static Fiber* self;
static void* scheduler_sp;
#if !defined(__x86_64__)
static ucontext_t scheduler;
#endif
static std::vector<Region> regions;             // global buffers
static std::vector<Region> variables;           // shared variables of this block, in the order of the arena
static std::vector<int> variable_of;            // id -> index in variables
static char* arena; static size_t arena_used, dynamic_bytes;
static Region* last_region; static int dynamic_index;
static uint64_t block_serial, launch_serial;    // a cell with an older serial is as if untouched
static uint32_t block_number; static std::vector<uint32_t> fences; static bool block_acquired;
static Value arguments[256]; static Call running;   // in the program's image, which kernels may read
static const char* kernel_name;
static bool recording;
struct Counts { uint64_t loads, stores, load_bytes, store_bytes, shared, atomics, barriers, meetings, threads, sectors, requests, wavefronts, shared_requests; };
static Counts counts;

static const char* const WHAT[] = {"input", "output", "scratch", "shared"};

[[noreturn]] static void fault(const char* kind, void* pc, const char* format, ...) {
  char text[400];
  va_list rest; va_start(rest, format); vsnprintf(text, sizeof text, format, rest); va_end(rest);
  if (self) {
    const Place& p = self->place;
    printf("fault %s %s (%u,%u,%u) (%u,%u,%u) %p %s\n", kind, kernel_name, p.block.x, p.block.y, p.block.z, p.thread.x,
           p.thread.y, p.thread.z, pc, text);
  } else printf("fault %s - - - %p %s\n", kind, pc, text);
  fflush(stdout);
  FILE* file = fopen("pc", "w");
  if (file) { fprintf(file, "%p\n", (void*)((char*)pc - 1)); fclose(file); }
  _exit(3);
}

[[noreturn]] void trap(const char* what) { fault("trap", __builtin_return_address(0), "%s", what); }

// ---- fibers ---------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void simt_switch(void** save, void* to);
asm(".text\n.globl simt_switch\nsimt_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
#endif

static void give_way() {
#if defined(__x86_64__)
  simt_switch(&self->sp, scheduler_sp);
#else
  swapcontext(&self->context, &scheduler);
#endif
}

static void entry() {
  running(arguments);
  self->state = GONE;
  give_way();
  abort();
}

static void prepare(Fiber& f) {
  if (!f.stack) {
    f.stack = (char*)mmap(nullptr, STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f.stack == MAP_FAILED) { perror("stack"); _exit(4); }
    mprotect(f.stack, 4096, PROT_NONE);
  }
#if defined(__x86_64__)
  void** top = (void**)(f.stack + STACK + 4096 - 64);
  *--top = nullptr;                 // keeps the stack aligned as after a call
  *--top = (void*)entry;
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.sp = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack + 4096; f.context.uc_stack.ss_size = STACK; f.context.uc_link = nullptr;
  makecontext(&f.context, entry, 0);
#endif
}

static void resume(Fiber& f) {
  self = &f; current = f.place;
#if defined(__x86_64__)
  simt_switch(&scheduler_sp, f.sp);
#else
  swapcontext(&scheduler, &f.context);
#endif
  self = nullptr;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static Region* find(uintptr_t a) {
  if (last_region && a >= last_region->start && a < last_region->end) return last_region;
  for (Region& r : variables) if (a >= r.start && a < r.end) return last_region = &r;
  for (Region& r : regions) if (a >= r.start && a < r.end) return last_region = &r;
  return nullptr;
}

static bool ordered(const Cell& c, bool shared, uint32_t block, int thread, uint32_t epoch, uint32_t meetings) {
  if (!shared && block != block_number)      // another block: only a fence there and an atomic here order anything
    return block_acquired && block < fences.size() && fences[block] > c.fences;
  if (thread == (int)self->linear || epoch != self->epoch) return true;
  return (unsigned)thread / 32 == self->warp && meetings != self->meetings;
}

static void access(uintptr_t a, size_t n, bool write, bool atomic, void* pc) {
  if (!self) return;
  uintptr_t bottom = (uintptr_t)self->stack;
  if (a >= bottom && a + n <= bottom + STACK + 4096) return;
  if (!write && a >= (uintptr_t)&__executable_start && a + n <= (uintptr_t)&_end) return;
  Region* r = find(a);
  if (!r || a + n > r->end) {
    const char* verb = write ? "writes" : "reads";
    Region* near = r;
    if (!near) for (Region& o : regions) if (a >= o.end && a < o.end + 4096) near = &o;
    if (!near) for (Region& o : regions) if (a < o.start && a + 4096 >= o.start) near = &o;
    if (!near) for (Region& o : variables) if (a >= o.start - 64 && a < o.end + 64) near = &o;
    if (near) fault("bounds", pc, "%s %zu bytes at byte %lld of %s %d, which has %zu", verb, n, (long long)(a - near->start), WHAT[near->kind], near->index, (size_t)(near->end - near->start));
    fault("bounds", pc, "%s %zu bytes at %p, which is nothing's", verb, n, (void*)a);
  }
  if (write && r->kind == INPUT) fault("input", pc, "writes into input %d", r->index);
  bool shared = r->kind == SHARED;
  if (atomic) { ++counts.atomics; block_acquired |= !shared; }
  else if (shared) ++counts.shared;
  else if (write) { ++counts.stores; counts.store_bytes += n; } else { ++counts.loads; counts.load_bytes += n; }
  if (recording) {
    std::vector<uint64_t>& log = shared ? self->shared : self->global;
    if (log.size() < MOST_RECORDED) log.push_back((uint64_t)a << 5 | (n > 31 ? 31 : n));
  }
  if (r->kind == INPUT) return;
  uint64_t serial = shared ? block_serial : launch_serial;
  size_t first = (a - r->start) / r->grain, last = (a + n - 1 - r->start) / r->grain;
  for (size_t i = first; i <= last; ++i) {
    Cell& c = r->cells[i];
    bool fresh = c.serial != serial;
    if (!write || atomic) {
      bool filled = shared ? !fresh : r->filled[i];
      if (!filled) fault("unwritten", pc, "reads element %zu of %s %d, which nothing wrote", i, WHAT[r->kind], r->index);
    }
    if (!fresh && !(atomic && c.atomic) && !ordered(c, shared, c.block, c.thread, c.epoch, c.meetings))
      fault("race", pc, "%s element %zu of %s %d, which thread %d of block %u writes without a barrier between", write ? "writes" : "reads", i, WHAT[r->kind], r->index, c.thread, c.block);
    if (write) {
      for (int k = 0; k < 2; ++k)
        if (c.read_serial[k] == serial && !(atomic && c.read_atomic[k]) && !ordered(c, shared, c.read_block[k], c.reader[k], c.read_epoch[k], c.read_meetings[k]))
          fault("race", pc, "writes element %zu of %s %d, which thread %d of block %u reads without a barrier between", i, WHAT[r->kind], r->index, c.reader[k], c.read_block[k]);
      c.serial = serial; c.epoch = self->epoch; c.meetings = self->meetings; c.thread = (int)self->linear; c.atomic = atomic;
      c.block = block_number; c.fences = block_number < fences.size() ? fences[block_number] : 0;
      if (!shared) r->filled[i] = true;
    } else {
      bool own = c.read_block[0] == block_number;     // slot 0 keeps a reader of this interval, slot 1 the latest other
      bool old = c.read_serial[0] != serial || (own && c.read_epoch[0] != self->epoch);
      int k = old || (own && c.reader[0] == (int)self->linear) ? 0 : 1;
      c.read_serial[k] = serial; c.reader[k] = (int)self->linear; c.read_epoch[k] = self->epoch;
      c.read_meetings[k] = self->meetings; c.read_block[k] = block_number; c.read_atomic[k] = atomic;
    }
  }
}

void touch(const volatile void* p, size_t n, bool write, bool atomic, void* pc) { access((uintptr_t)p, n, write, atomic, pc); }
void copy(void* to, const void* from, size_t n) {
  if (n) { access((uintptr_t)from, n, false, false, __builtin_return_address(0)); access((uintptr_t)to, n, true, false, __builtin_return_address(0)); }
  ::memmove(to, from, n);
}
void fill(void* to, int value, size_t n) {
  if (n) access((uintptr_t)to, n, true, false, __builtin_return_address(0));
  ::memset(to, value, n);
}

static Region& new_variable(size_t bytes, size_t grain, int index) {
  size_t start = (arena_used + 64 + 127) / 128 * 128;      // a gap before each variable, so that running over is seen
  if (start + bytes + 64 > ARENA) fault("shared", nullptr, "the block's shared memory is over 227 KiB");
  arena_used = start + bytes;
  Region r{};
  r.start = (uintptr_t)(arena + start); r.end = r.start + bytes; r.kind = SHARED; r.index = index;
  r.grain = grain == 1 || grain == 2 ? grain : 4;
  r.cells.resize((bytes + r.grain - 1) / r.grain);
  variables.push_back(std::move(r));
  last_region = nullptr;
  return variables.back();
}

void* shared_bytes(unsigned id, size_t bytes, size_t grain) {
  if (id >= variable_of.size()) variable_of.resize(id + 1, -1);
  if (variable_of[id] < 0) {
    new_variable(bytes, grain % 4 ? grain : 4, (int)id);
    variable_of[id] = (int)variables.size() - 1;
  }
  return (void*)variables[variable_of[id]].start;
}

void* dynamic_shared(size_t grain) {
  if (dynamic_index < 0) {
    if (!dynamic_bytes) fault("shared", __builtin_return_address(0), "uses dynamic shared memory, and the plan gives none");
    new_variable(dynamic_bytes, grain % 4 ? grain : 4, -1);
    dynamic_index = (int)variables.size() - 1;
  }
  return (void*)variables[dynamic_index].start;
}

void fence() { if (block_number < fences.size()) ++fences[block_number]; }

// ---- barriers and warps ---------------------------------------------------------------------------------------------

int barrier(int site, int kind, int predicate) {
  self->state = AT_BARRIER; self->site = site; self->kind = kind; self->predicate = predicate;
  give_way();
  return self->result;
}

unsigned lane() { return self->lane; }
unsigned active() {
  unsigned mask = 0, base = self->warp * 32;
  for (unsigned i = 0; i < 32 && base + i < fibers.size(); ++i) if (fibers[base + i].state != GONE) mask |= 1u << i;
  return mask;
}

const uint64_t* meet(unsigned mask, int operation, uint64_t value, int site) {
  void* pc = self->pc = __builtin_return_address(0);
  if (!(mask >> self->lane & 1)) fault("warp", pc, "the mask %08x of a warp operation lacks the calling lane %u", mask, self->lane);
  self->mask = mask; self->operation = operation | site << 8; self->value = value; self->state = AT_MEETING;
  unsigned base = self->warp * 32;
  bool complete = true;
  for (unsigned i = 0; i < 32; ++i) if (mask >> i & 1) {
    if (base + i >= fibers.size() || fibers[base + i].state == GONE) {
      if (operation == 1 || base + i >= fibers.size()) continue;
      fault("warp", pc, "lane %u is in the mask %08x of a warp operation and has already returned", i, mask);
    }
    Fiber& f = fibers[base + i];
    if (f.state != AT_MEETING) { complete = false; continue; }
    if (f.mask != mask || f.operation != self->operation) fault("warp", pc, "lanes %u and %u meet in different warp operations", self->lane, i);
  }
  if (!complete) { give_way(); ::memcpy(got_now, self->got, sizeof got_now); return got_now; }
  uint32_t now = 0;
  for (unsigned i = 0; i < 32; ++i) if (mask >> i & 1 && base + i < fibers.size() && fibers[base + i].meetings > now) now = fibers[base + i].meetings;
  uint64_t values[32] = {};
  for (unsigned i = 0; i < 32; ++i) if (mask >> i & 1 && base + i < fibers.size()) values[i] = fibers[base + i].value;
  for (unsigned i = 0; i < 32; ++i) if (mask >> i & 1 && base + i < fibers.size() && fibers[base + i].state == AT_MEETING) {
    Fiber& f = fibers[base + i];
    for (int k = 0; k < 32; ++k) f.got[k] = values[k];
    f.meetings = now + 1; f.state = READY; ++counts.meetings;
  }
  ::memcpy(got_now, values, sizeof got_now);
  return got_now;
}

static void release_barrier() {
  int sum = 0, waiting = 0, site = -1;
  Fiber* first = nullptr;
  for (Fiber& f : fibers) if (f.state == AT_BARRIER) {
    if (site < 0) { site = f.site; first = &f; }
    if (f.site != site || f.kind != first->kind) {
      self = &f;
      fault("barrier", nullptr, "threads of one block wait at different barriers, in lines %d and %d", first->site, f.site);
    }
    sum += f.predicate; ++waiting;
  }
  for (Fiber& f : fibers) if (f.state == AT_BARRIER) {
    f.result = f.kind == 1 ? sum : f.kind == 2 ? sum == waiting : sum > 0;
    f.state = READY; ++f.epoch; ++counts.barriers;
  }
}

// ---- counting -------------------------------------------------------------------------------------------------------

static void count_first_block(uint64_t blocks) {
  for (size_t base = 0; base < fibers.size(); base += 32) {
    size_t lanes = fibers.size() - base < 32 ? fibers.size() - base : 32, most = 0, most_shared = 0;
    for (size_t i = 0; i < lanes; ++i) {
      if (fibers[base + i].global.size() > most) most = fibers[base + i].global.size();
      if (fibers[base + i].shared.size() > most_shared) most_shared = fibers[base + i].shared.size();
    }
    for (size_t k = 0; k < most; ++k) {
      std::vector<uint64_t> sectors;
      for (size_t i = 0; i < lanes; ++i) if (k < fibers[base + i].global.size()) {
        uint64_t entry = fibers[base + i].global[k], a = entry >> 5, n = entry & 31;
        for (uint64_t s = a >> 5; s <= (a + (n ? n : 1) - 1) >> 5; ++s) {
          bool known = false;
          for (uint64_t o : sectors) known |= o == s;
          if (!known) sectors.push_back(s);
        }
      }
      counts.sectors += sectors.size() * blocks; counts.requests += blocks;
    }
    for (size_t k = 0; k < most_shared; ++k) {
      std::vector<uint64_t> banks[32];
      size_t waves = 1;
      for (size_t i = 0; i < lanes; ++i) if (k < fibers[base + i].shared.size()) {
        uint64_t word = fibers[base + i].shared[k] >> 7, bank = word & 31;
        bool known = false;
        for (uint64_t o : banks[bank]) known |= o == word;
        if (!known) banks[bank].push_back(word);
        if (banks[bank].size() > waves) waves = banks[bank].size();
      }
      counts.wavefronts += waves * blocks; counts.shared_requests += blocks;
    }
  }
}

// ---- launches -------------------------------------------------------------------------------------------------------

static void run_block(unsigned threads, dim3 size, dim3 grid, uint3 block, bool reverse, bool first) {
  ++block_serial; block_acquired = false; last_region = nullptr;
  variables.clear(); variable_of.clear(); arena_used = 0; dynamic_index = -1;
  ::memset(arena, 0xff, ARENA);
  recording = first;
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& f = fibers[t];
    f.place = Place{{t % size.x, t / size.x % size.y, t / (size.x * size.y)}, block, size, grid};
    f.linear = t; f.lane = t % 32; f.warp = t / 32; f.state = READY; f.epoch = 0; f.meetings = 0;
    f.global.clear(); f.shared.clear();
    prepare(f);
  }
  while (true) {
    bool moved = false;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& f = fibers[reverse ? threads - 1 - i : i];
      if (f.state == READY) { resume(f); moved = true; }
    }
    if (moved) continue;
    unsigned gone = 0, waiting = 0;
    Fiber* stuck = nullptr;
    for (Fiber& f : fibers) { gone += f.state == GONE; waiting += f.state == AT_BARRIER; if (f.state == AT_MEETING) stuck = &f; }
    if (gone == threads) break;
    if (stuck) { self = stuck; fault("warp", stuck->pc, "lane %u waits in a warp operation with mask %08x that other lanes never reach", stuck->lane, stuck->mask); }
    release_barrier();
  }
  recording = false;
}

static void on_signal(int number, siginfo_t* info, void*) {
  void* after = (char*)info->si_addr + 1;      // fault() looks up the byte before a return address
  if (number == SIGILL || number == SIGTRAP) fault("undefined", after, "indexes outside an array, or uses a misaligned pointer");
  if (number == SIGFPE) fault("undefined", after, "divides an integer by zero");
  fault("bounds", nullptr, "touches memory at %p", info->si_addr);
}

static void run_job(int number) {
  char name[64];
  snprintf(name, sizeof name, "job-%d.txt", number);
  FILE* job = fopen(name, "r");
  snprintf(name, sizeof name, "job-%d.bin", number);
  FILE* data = fopen(name, "rb");
  if (!job || !data) { perror("job"); _exit(4); }
  int reverse, buffers, launches;
  if (fscanf(job, "%d %d", &reverse, &buffers) != 2) _exit(4);
  regions.clear(); last_region = nullptr;
  regions.resize(buffers);
  for (int i = 0; i < buffers; ++i) {
    int kind, zero; size_t bytes, grain;
    if (fscanf(job, "%d %zu %zu %d", &kind, &bytes, &grain, &zero) != 4) _exit(4);
    char* place = (char*)mmap(nullptr, bytes + 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED) _exit(4);
    place += 4096 + (reverse ? 256 : 0);
    Region& r = regions[i];
    r.start = (uintptr_t)place; r.end = r.start + bytes; r.kind = (Kind)kind; r.index = i; r.grain = grain > 4 ? 4 : grain;
    if (kind == INPUT) { if (fread(place, 1, bytes, data) != bytes) _exit(4); }
    else {
      ::memset(place, zero ? 0 : 0xff, bytes);
      r.cells.resize((bytes + r.grain - 1) / r.grain);
      r.filled.assign(r.cells.size(), zero);
    }
  }
  if (fscanf(job, "%d", &launches) != 1) _exit(4);
  for (int l = 0; l < launches; ++l) {
    unsigned kernel, count; dim3 grid, size; size_t shared;
    if (fscanf(job, "%u %u %u %u %u %u %u %zu %u", &kernel, &grid.x, &grid.y, &grid.z, &size.x, &size.y, &size.z, &shared, &count) != 9 || kernel >= kernel_count) _exit(4);
    if (count > 256) _exit(4);
    for (unsigned i = 0; i < count; ++i) {
      Value& v = arguments[i];
      char tag; unsigned long long bits;
      if (fscanf(job, " %c %llu", &tag, &bits) != 2) _exit(4);
      v.bits = tag == 't' ? (uint64_t)regions[bits].start : bits;
    }
    ++launch_serial; dynamic_bytes = shared; running = kernels[kernel].call; kernel_name = kernels[kernel].name;
    unsigned threads = size.x * size.y * size.z;
    for (size_t t = threads; t < fibers.size(); ++t) if (fibers[t].stack) munmap(fibers[t].stack, STACK + 4096);
    fibers.resize(threads);
    uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    fences.assign(blocks < (1u << 24) ? blocks : 0, 0);
    counts.threads += blocks * threads;
    for (uint64_t b = 0; b < blocks; ++b) {
      uint64_t at = reverse ? blocks - 1 - b : b;
      block_number = (uint32_t)at;
      uint3 block = {(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y), (unsigned)(at / ((uint64_t)grid.x * grid.y))};
      bool counted = b == 0 && !reverse;
      run_block(threads, size, grid, block, reverse, counted);
      if (counted) count_first_block(blocks);
    }
  }
  snprintf(name, sizeof name, "out-%d.bin", number);
  FILE* out = fopen(name, "wb");
  for (Region& r : regions) if (r.kind == OUTPUT) {
    fwrite((void*)r.start, 1, r.end - r.start, out);
    size_t missing = 0;
    for (bool f : r.filled) missing += !f;
    printf("unwritten %d %d %zu\n", number, r.index, missing);
  }
  fclose(out);
  fclose(job);
  fclose(data);
}
}  // namespace simt

// The sanitizer's calls, one before each load and store of a kernel.
#define SIMT_HOOK(n) \
  extern "C" void __tsan_read##n(void* p) { simt::access((uintptr_t)p, n, false, false, __builtin_return_address(0)); } \
  extern "C" void __tsan_write##n(void* p) { simt::access((uintptr_t)p, n, true, false, __builtin_return_address(0)); } \
  extern "C" void __tsan_unaligned_read##n(void* p) { simt::access((uintptr_t)p, n, false, false, __builtin_return_address(0)); } \
  extern "C" void __tsan_unaligned_write##n(void* p) { simt::access((uintptr_t)p, n, true, false, __builtin_return_address(0)); }
SIMT_HOOK(1) SIMT_HOOK(2) SIMT_HOOK(4) SIMT_HOOK(8) SIMT_HOOK(16)
extern "C" void __tsan_read_range(void* p, size_t n) { simt::access((uintptr_t)p, n, false, false, __builtin_return_address(0)); }
extern "C" void __tsan_write_range(void* p, size_t n) { simt::access((uintptr_t)p, n, true, false, __builtin_return_address(0)); }
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

int main(int argc, char** argv) {
  int jobs = argc > 1 ? atoi(argv[1]) : 1;
  static char alternate[64 << 10];
  stack_t stack = {}; stack.ss_sp = alternate; stack.ss_size = sizeof alternate;
  sigaltstack(&stack, nullptr);
  struct sigaction action = {}; action.sa_sigaction = simt::on_signal; action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP}) sigaction(number, &action, nullptr);
  simt::arena = (char*)mmap(nullptr, simt::ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < jobs; ++i) {
    simt::run_job(i);
    printf("done %d\n", i);
    if (i == 0) {
      const simt::Counts& c = simt::counts;
      printf("counts loads %llu stores %llu load_bytes %llu store_bytes %llu shared %llu atomics %llu barriers %llu meetings %llu threads %llu "
             "sectors %llu requests %llu wavefronts %llu shared_requests %llu\n",
             (unsigned long long)c.loads, (unsigned long long)c.stores, (unsigned long long)c.load_bytes, (unsigned long long)c.store_bytes,
             (unsigned long long)c.shared, (unsigned long long)c.atomics, (unsigned long long)c.barriers, (unsigned long long)c.meetings,
             (unsigned long long)c.threads, (unsigned long long)c.sectors, (unsigned long long)c.requests, (unsigned long long)c.wavefronts,
             (unsigned long long)c.shared_requests);
    }
    fflush(stdout);
  }
  return 0;
}
