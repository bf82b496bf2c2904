#include "fibres.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>

namespace fastnorm::cuda::host {

namespace {

constexpr std::size_t stack_bytes = 64 << 10;
constexpr std::size_t overflow_bytes = 16 << 10;  // below it, in which too deep a stack is noticed
constexpr std::uint64_t canary = 0x5afe5afe5afe5afe;

// One is made the first time it is needed, and then used for one body after the other.
struct Fibre {
    jmp_buf context;
    bool started = false;
    bool done = true;
    int index = 0;
    const char* waits_for = nullptr;
    std::uint64_t* bottom = nullptr;  // of the stack, where nothing may ever be written
};

struct Scheduler {
    std::vector<std::unique_ptr<Fibre>> fibres;
    Fibre* current = nullptr;
    jmp_buf context;
    const std::function<void(int)>* body = nullptr;
    const char* op = "";
    std::uint64_t progress = 0;
    std::mt19937 random{20261122};
};

Scheduler& scheduler() {
    thread_local Scheduler s;
    return s;
}

[[noreturn]] void fibre_main() {
    for (;;) {
        Fibre& self = *scheduler().current;
        (*scheduler().body)(self.index);
        self.done = true;
        ++scheduler().progress;
        if (_setjmp(self.context) == 0) _longjmp(scheduler().context, 1);
    }
}

// The first switch to a fibre is a ucontext's; all others are jumps, which save no signal mask.
void resume(Fibre& fibre) {
    Scheduler& s = scheduler();
    s.current = &fibre;
    if (_setjmp(s.context) == 0) {
        if (fibre.started) _longjmp(fibre.context, 1);
        fibre.started = true;
        void* const stack = mmap(nullptr, overflow_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) die("no memory for another fibre");
        char* const lowest = static_cast<char*>(stack) + overflow_bytes;
        fibre.bottom = reinterpret_cast<std::uint64_t*>(lowest) - 1;
        *fibre.bottom = canary;
        ucontext_t start;
        getcontext(&start);
        start.uc_stack.ss_sp = lowest;
        start.uc_stack.ss_size = stack_bytes;
        start.uc_link = nullptr;
        makecontext(&start, fibre_main, 0);
        setcontext(&start);
    }
    if (*fibre.bottom != canary) die("a kernel needs more stack than a fibre has");
}

}  // namespace

[[noreturn]] void die(const std::string& what) {
    std::fprintf(stderr, "%s: %s\n", scheduler().op, what.c_str());
    std::abort();
}

std::uint32_t Barrier::arrive(const char* what, int line) {
    if (arrived_ == 0) {
        what_ = what;
        line_ = line;
    } else if (std::strcmp(what_, what) != 0 || line_ != line) {
        die(std::string("threads meet at different barriers: ") + what_ + " in line " +
            std::to_string(line_) + ", " + what + " in line " + std::to_string(line));
    }
    const std::uint32_t generation = generation_;
    if (++arrived_ == size_) {
        arrived_ = 0;
        ++generation_;
        ++scheduler().progress;
    }
    return generation;
}

void yield_fibre(const char* what) {
    Fibre& self = *scheduler().current;
    self.waits_for = what;
    if (_setjmp(self.context) == 0) _longjmp(scheduler().context, 1);
}

void run_fibres(const char* op, int count, Order order, const std::function<void(int)>& body) {
    Scheduler& s = scheduler();
    s.op = op;
    s.body = &body;
    while (static_cast<int>(s.fibres.size()) < count) {
        s.fibres.push_back(std::make_unique<Fibre>());
    }
    std::vector<int> turns(static_cast<std::size_t>(count));
    std::iota(turns.begin(), turns.end(), 0);
    if (order == Order::reversed) std::reverse(turns.begin(), turns.end());
    for (int i = 0; i < count; ++i) {
        s.fibres[static_cast<std::size_t>(i)]->index = i;
        s.fibres[static_cast<std::size_t>(i)]->done = false;
    }
    for (;;) {
        if (order == Order::shuffled) std::shuffle(turns.begin(), turns.end(), s.random);
        const std::uint64_t before = s.progress;
        int left = 0;
        for (const int i : turns) {
            Fibre& fibre = *s.fibres[static_cast<std::size_t>(i)];
            if (fibre.done) continue;
            resume(fibre);
            left += fibre.done ? 0 : 1;
        }
        if (left == 0) break;
        if (s.progress != before) continue;
        for (const int i : turns) {
            const Fibre& fibre = *s.fibres[static_cast<std::size_t>(i)];
            if (fibre.done) continue;
            die("thread " + std::to_string(i) + " and " + std::to_string(left - 1) +
                " more wait for ever: " + fibre.waits_for);
        }
    }
    s.current = nullptr;
}

}  // namespace fastnorm::cuda::host
