// Threads. A ParallelFor is a plain value that an embedder can fill with its own; the default one
// runs on OpenMP, whose runtime no other file knows.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/machine.h"

namespace fastnorm {

// run(context, tasks, body, argument) calls body(argument, task) once for each task in [0, tasks),
// in any order and on any thread, and returns when all are done. With as many tasks as threads,
// each thread gets the one of its own number. All arithmetic of a call happens in its tasks.
struct ParallelFor {
    int threads = 1;
    void* context = nullptr;
    void (*run)(void* context, std::int64_t tasks, void (*body)(void*, std::int64_t),
                void* argument) = nullptr;

    template <class F>
    void operator()(std::int64_t tasks, F&& f) const {
        void* const body = const_cast<void*>(static_cast<const void*>(&f));
        if (threads <= 1 || tasks <= 1 || run == nullptr) {
            for (std::int64_t task = 0; task < tasks; ++task) {
                call<std::remove_reference_t<F>>(body, task);
            }
            return;
        }
        run(context, tasks, call<std::remove_reference_t<F>>, body);
    }

  private:
    // Not inlined: the compiler may move arithmetic over a change of the environment, not over a
    // call.
    template <class Body>
    [[gnu::noinline]] static void call(void* body, std::int64_t task) {
        const DefaultFloatingPoint environment;
        (*static_cast<Body*>(body))(task);
    }
};

ParallelFor openmp_parallel_for(int threads);

// What the process is set to use (fastnorm.hpp); 1 in a child of fork(), where the threads of the
// OpenMP runtime do not exist.
int default_threads();
void set_default_threads(int threads);
const char* openmp_version();

}  // namespace fastnorm
