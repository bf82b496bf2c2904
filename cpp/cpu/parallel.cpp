#include "cpu/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdlib>
#include <limits>
#include <string>

#include "cpu/machine.h"

namespace fastnorm {

namespace {

std::atomic<int> chosen_threads{0};  // 0: not set, follow the environment
std::atomic<bool> forked{false};

// An OpenMP runtime that had threads before fork() waits for them forever in the child.
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

// 0 where the variable is no positive number. OMP_NUM_THREADS may be a list: its first.
int positive_from_environment(const char* name) {
    const char* text = std::getenv(name);
    if (text == nullptr) return 0;
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (end == text || value <= 0) return 0;
    while (std::isspace(static_cast<unsigned char>(*end))) ++end;
    if (*end != '\0' && *end != ',') return 0;
    return static_cast<int>(std::min<long>(value, std::numeric_limits<int>::max()));
}

int threads_from_environment() {
    static const int threads = [] {
        if (const int n = positive_from_environment("FASTNORM_NUM_THREADS")) return n;
        if (const int n = positive_from_environment("OMP_NUM_THREADS")) return n;
        return available_cores();
    }();
    return threads;
}

// A team of many thousands would end the process: libgomp keeps arrays of its size on the stack,
// and exits where a thread cannot be had. More threads than cores are of use only to tests.
int largest_team() {
    static const int limit = std::max(4 * available_cores(), 64);
    return limit;
}

}  // namespace

int default_threads() {
    if (forked.load(std::memory_order_relaxed)) return 1;
    const int chosen = chosen_threads.load(std::memory_order_relaxed);
    return chosen > 0 ? chosen : threads_from_environment();
}

void set_default_threads(int threads) { chosen_threads.store(threads, std::memory_order_relaxed); }

ParallelFor openmp_parallel_for(int threads) {
    threads = std::min(threads, largest_team());
    return {
        threads, reinterpret_cast<void*>(static_cast<std::intptr_t>(threads)),
        [](void* context, std::int64_t tasks, void (*body)(void*, std::int64_t), void* argument) {
            const auto limit = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(context));
            const int team = static_cast<int>(tasks < limit ? tasks : limit);
            if (tasks <= limit) {
#pragma omp parallel for num_threads(team) schedule(static, 1)
                for (std::int64_t task = 0; task < tasks; ++task) body(argument, task);
            } else {
#pragma omp parallel for num_threads(team) schedule(dynamic, 1)
                for (std::int64_t task = 0; task < tasks; ++task) body(argument, task);
            }
        }};
}

// What it was built for: the runtime that is loaded may be another than the compiler's own.
const char* openmp_version() {
    static const std::string text = "OpenMP " + std::to_string(_OPENMP) +
                                    ", compiled by "
#if !defined(__clang__) && defined(__GNUC__)
                                    "GCC "
#endif
                                    __VERSION__;
    return text.c_str();
}

}  // namespace fastnorm
