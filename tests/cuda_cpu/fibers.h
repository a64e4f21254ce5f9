// Threads of a CUDA block as fibers on one CPU thread: stacks, switches, barriers, warp operations.
//
// A thread runs until it needs others (a barrier, a shuffle) or returns. Who runs next is the `order`
// of a launch, since a kernel must give the same bits in all of them:
//   0, 1  lockstep: all threads to their next stop, ascending or descending
//   2, 3  greedy: one warp as far as it can go, the lowest or the highest warp first
//   more  a seed: any thread that can run
// Blocks run one after the other, ascending, descending or shuffled.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// __shared__ variables are static ones in a section of their own. Absent where no kernel has any.
extern "C" {
extern unsigned char __start_qrs_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_qrs_shared[] __attribute__((weak, visibility("hidden")));
}

namespace cuda_cpu {

// ---- Switching stacks ------------------------------------------------------------------------------

#ifdef __x86_64__
using Context = void*;
extern "C" void qrs_switch(Context* from, Context* to);
// The registers that a call keeps go to the old stack, whose pointer is left in *from.
asm(R"(
    .text
    .hidden qrs_switch
    .globl qrs_switch
    .type qrs_switch, @function
qrs_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size qrs_switch, .-qrs_switch
)");

inline void start(Context& context, char* stack, size_t size, void (*entry)()) {
    auto top = reinterpret_cast<void**>(stack + size);
    *--top = nullptr;  // no return from the entry: its frame is aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    context = top - 6;
}
#else
using Context = ucontext_t;
inline void qrs_switch(Context* from, Context* to) { swapcontext(from, to); }

inline void start(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack = {stack, 0, size};
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

// ---- Threads of the block that runs ----------------------------------------------------------------

enum class State { ready, at_barrier, at_warp_operation, exited };

// What a lane brings to a *_sync. Two lanes meet only in the same operation at the same place.
struct Operation {
    const char* name = "";
    const char* file = "";
    int line = 0;
    uint32_t mask = 0;
};

struct Thread {
    Context context;
    State state = State::exited;
    uint3 index = {};
    Operation operation;
    uint64_t value = 0;  // brought to a *_sync, and taken from it
    uint32_t other = 0;  // a lane or a distance
};

constexpr size_t STACK = 256 * 1024;
constexpr unsigned MAX_THREADS = 1024;

static Thread threads[MAX_THREADS];
static unsigned count, current;     // threads of the block; the one that runs
static unsigned at_barrier, exited;  // how many of them
static Context scheduler;
static std::string error;

// The lanes of a warp, as bits: those that wait in a *_sync, and those that will never be in one.
struct Warp {
    uint32_t waiting, gone;
};
static Warp warps[MAX_THREADS / 32];

// The kernel with its arguments bound: calls body(bound).
static void (*body)(const void*);
static const void* bound;

inline Thread& self() { return threads[current]; }

inline void leave() { qrs_switch(&self().context, &scheduler); }

// End the launch with a message. Nothing is unwound: the other threads are dropped where they are.
[[noreturn]] inline void fail(const std::string& message) {
    const uint3 t = self().index, b = blockIdx;
    char where[96];
    snprintf(where, sizeof where, " (thread %u,%u,%u of block %u,%u,%u)", t.x, t.y, t.z, b.x, b.y,
             b.z);
    error = message + where;
    leave();
    abort();
}

inline std::string describe(const Operation& o) {
    return std::string(o.name) + " at " + o.file + ":" + std::to_string(o.line);
}

inline bool same(const Operation& a, const Operation& b) {
    return a.line == b.line && a.mask == b.mask && (a.name == b.name || !strcmp(a.name, b.name)) &&
           (a.file == b.file || !strcmp(a.file, b.file));
}

inline void run_thread() {
    body(bound);
    self().state = State::exited;
    exited++;
    warps[current / 32].gone |= 1u << current % 32;
    if (at_barrier) fail("divergent barrier: a thread has exited while others wait for it");
    leave();
    abort();
}

// ---- Barriers and warp operations ------------------------------------------------------------------

inline void barrier(Operation here) {
    if (exited) fail("divergent barrier: a thread has exited before " + describe(here));
    self().operation = here;
    self().state = State::at_barrier;
    if (++at_barrier < count) return leave();
    for (unsigned i = 0; i < count; i++) {
        const Operation& there = threads[i].operation;
        if (!same(here, there))
            fail("divergent barrier: " + describe(there) + " and " + describe(here));
        threads[i].state = State::ready;
    }
    at_barrier = 0;
    leave();  // whoever arrives last has no privilege: the order says who goes on
}

// The lanes of `here.mask` meet; the last to arrive lets `answer(lanes)` turn all values into results.
template <typename Answer>
uint64_t meet(const Operation& here, uint64_t value, uint32_t other, Answer answer) {
    const unsigned lane = current % 32;
    Thread* lanes = threads + (current - lane);
    Warp& warp = warps[current / 32];
    if (!(here.mask >> lane & 1)) fail(describe(here) + ": the mask lacks the lane that calls");
    if (here.mask & warp.gone) fail(describe(here) + ": the mask names a lane that has exited");
    self().operation = here;
    self().value = value;
    self().other = other;
    self().state = State::at_warp_operation;
    warp.waiting |= 1u << lane;
    if ((warp.waiting & here.mask) != here.mask) {
        leave();
        return self().value;
    }
    for (unsigned i = 0; i < 32; i++) {
        const Operation& there = lanes[i].operation;
        if ((here.mask >> i & 1) && !same(here, there))
            fail("lanes of a warp diverge: " + describe(there) + " and " + describe(here));
    }
    answer(lanes);
    for (unsigned i = 0; i < 32; i++)
        if (here.mask >> i & 1) lanes[i].state = State::ready;
    warp.waiting &= ~here.mask;
    leave();
    return self().value;
}

// ---- Who runs next ---------------------------------------------------------------------------------

struct Order {
    unsigned order;
    uint64_t random;
    explicit Order(unsigned order) : order(order), random(order) {}

    // Any number below n: the high bits of a linear congruential generator (Knuth's MMIX).
    unsigned below(unsigned n) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        return unsigned(random >> 33) % n;
    }

    unsigned block(unsigned i, unsigned n, std::vector<unsigned>& shuffled) {
        if (order < 4) return order % 2 ? n - 1 - i : i;
        if (shuffled.empty()) {
            for (unsigned k = 0; k < n; k++) shuffled.push_back(k);
            for (unsigned k = n; k > 1; k--) std::swap(shuffled[k - 1], shuffled[below(k)]);
        }
        return shuffled[i];
    }

    // Run threads [first, last) that are ready, once each; was there any?
    template <typename Resume>
    bool sweep(unsigned first, unsigned last, bool down, Resume resume) {
        bool any = false;
        for (unsigned i = first; i < last && error.empty(); i++) {
            const unsigned t = down ? last - 1 - (i - first) : i;
            if (threads[t].state != State::ready) continue;
            any = true;
            resume(t);
        }
        return any;
    }

    template <typename Resume>
    bool step(Resume resume) {
        if (order < 2) return sweep(0, count, order == 1, resume);
        const unsigned n = (count + 31) / 32;
        if (order < 4) {
            for (unsigned i = 0; i < n; i++) {
                const unsigned first = 32 * (order == 3 ? n - 1 - i : i);
                const unsigned last = std::min(first + 32, count);
                if (sweep(first, last, order == 3, resume)) return true;
            }
            return false;
        }
        const unsigned start = below(count);
        for (unsigned i = 0; i < count; i++) {
            const unsigned t = (start + i) % count;
            if (threads[t].state == State::ready) return resume(t), true;
        }
        return false;
    }
};

inline void resume(unsigned t) {
    current = t;
    threadIdx = threads[t].index;
    qrs_switch(&scheduler, &threads[t].context);
}

__attribute__((no_sanitize("address", "undefined"))) inline void poison_shared() {
    // By hand, since ASan watches memset, and there is no variable between variables.
    volatile unsigned char *p = __start_qrs_shared, *end = __stop_qrs_shared;
    for (; p < end && uintptr_t(p) % 8; p++) *p = 0xFF;
    for (; end - p >= 8; p += 8) *(volatile uint64_t*)p = ~uint64_t(0);
    for (; p < end; p++) *p = 0xFF;
}

// Stacks for the threads of a block, each with a page below that must not be touched. One set serves
// all modules of a process: the pages below make thousands of mappings, and those are limited.
inline char* make_stacks() {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* m = mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (m == MAP_FAILED) return nullptr;
    char* stacks = static_cast<char*>(m);
    for (unsigned i = 0; i < MAX_THREADS; i++)
        if (mprotect(stacks + STACK * i, 4096, PROT_NONE)) return nullptr;
    return stacks;
}

inline void run_block(Order& order, char* stacks) {
    poison_shared();
    at_barrier = exited = 0;
    for (unsigned w = 0; 32 * w < count; w++)
        warps[w] = {0, count - 32 * w < 32 ? ~0u << count % 32 : 0};
    for (unsigned t = 0; t < count; t++) {
        const unsigned row = t / blockDim.x;
        threads[t].index = {t % blockDim.x, row % blockDim.y, row / blockDim.y};
        threads[t].state = State::ready;
        // Tops at different places of a page: or all would compete for the same lines of the cache.
        start(threads[t].context, stacks + STACK * t, STACK - t % 64 * 192, run_thread);
    }
    while (error.empty() && order.step(resume)) {
    }
    if (!error.empty() || exited == count) return;
    for (unsigned t = 0; t < count; t++)
        if (threads[t].state == State::at_warp_operation) {
            error = "threads wait for ever in " + describe(threads[t].operation);
            return;
        }
    error = "divergent barrier: threads wait for ever";
}

inline bool valid(const unsigned* grid, const unsigned* block) {
    const uint64_t size = uint64_t(block[0]) * block[1] * block[2];
    return grid[0] && grid[1] && grid[2] && grid[0] <= 0x7fffffffu && grid[1] <= 65535 &&
           grid[2] <= 65535 && size && size <= MAX_THREADS && block[2] <= 64;
}

// Run a kernel, all of whose arguments are bound in `kernel`: null, or what was wrong.
template <typename Kernel>
const char* run_grid(const unsigned* grid, const unsigned* block, unsigned order_number, char* stacks,
                     const Kernel& kernel) {
    if (!valid(grid, block)) return "invalid argument: the sizes of the grid or the block";
    error.clear();
    body = [](const void* k) { (*static_cast<const Kernel*>(k))(); };
    bound = &kernel;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    count = block[0] * block[1] * block[2];
    Order order(order_number);
    std::vector<unsigned> shuffled;
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned i = 0; i < blocks && error.empty(); i++) {
        const unsigned b = order.block(i, blocks, shuffled), row = b / grid[0];
        blockIdx = {b % grid[0], row % grid[1], row / grid[1]};
        run_block(order, stacks);
    }
    return error.empty() ? nullptr : error.c_str();
}

// ---- Launching by type -----------------------------------------------------------------------------

// "p" for a pointer, else the kind and the size: "i8", "f4", "b1"; "s2" for a struct.
template <typename P>
std::string letter() {
    if (std::is_pointer_v<P>) return "p";
    const char* kind = std::is_same_v<P, bool>          ? "b"
                       : std::is_integral_v<P>          ? "i"
                       : std::is_floating_point_v<P>    ? "f"
                                                        : "s";
    return kind + std::to_string(sizeof(P));
}

template <typename... P>
const char* signature(void (*)(P...)) {
    static const std::string text = ((letter<P>() + " ") + ... + "");
    return text.c_str();
}

template <typename... P, size_t... I>
const char* launch(void (*kernel)(P...), const unsigned* grid, const unsigned* block, void** args,
                   unsigned order, char* stacks, std::index_sequence<I...>) {
    return run_grid(grid, block, order, stacks, [=] { kernel(*static_cast<P*>(args[I])...); });
}

template <typename... P>
const char* launch(void (*kernel)(P...), const unsigned* grid, const unsigned* block, void** args,
                   unsigned order, char* stacks) {
    return launch(kernel, grid, block, args, order, stacks, std::index_sequence_for<P...>{});
}

}  // namespace cuda_cpu
