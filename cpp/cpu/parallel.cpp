#include "cpu/parallel.h"

#include <omp.h>
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <string>

#include "cpu/machine.h"

namespace fastnorm {

namespace {

std::atomic<int> chosen_threads{0};  // 0: not set, follow the environment
std::atomic<bool> forked{false};

// An OpenMP runtime that had threads before fork() waits for them forever in the child.
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

int positive_from_environment(const char* name) {
    const char* text = std::getenv(name);
    if (text == nullptr) return 0;
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);  // OMP_NUM_THREADS may be a list: its first
    return end != text && value > 0 && value < 1 << 20 ? static_cast<int>(value) : 0;
}

int threads_from_environment() {
    static const int threads = [] {
        if (const int n = positive_from_environment("FASTNORM_NUM_THREADS")) return n;
        if (const int n = positive_from_environment("OMP_NUM_THREADS")) return n;
        return available_cores();
    }();
    return threads;
}

}  // namespace

int default_threads() {
    if (forked.load(std::memory_order_relaxed)) return 1;
    const int chosen = chosen_threads.load(std::memory_order_relaxed);
    return chosen > 0 ? chosen : threads_from_environment();
}

void set_default_threads(int threads) { chosen_threads.store(threads, std::memory_order_relaxed); }

ParallelFor openmp_parallel_for(int threads) {
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

const char* openmp_version() {
    static const std::string text = "OpenMP " + std::to_string(_OPENMP) +
#if defined(__clang__)
                                    " (libomp)";
#elif defined(__GNUC__)
                                    " (libgomp)";
#else
                                    "";
#endif
    return text.c_str();
}

}  // namespace fastnorm
