// Threads of a GPU as fibres of one CPU thread: each has a stack, and they take turns. A fibre runs
// until it waits for the others; then the next one runs, in an order that a test can choose.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace fastnorm::cuda::host {

enum class Order { forward, reversed, shuffled };

// A barrier that `size` fibres have to reach. What is waited for, and where, is the same for all of
// them, or the program is wrong.
class Barrier {
  public:
    explicit Barrier(int size = 0) : size_(size) {}

    // Returns the generation, which counts the times that all had arrived. Does not wait.
    std::uint32_t arrive(const char* what, int line);
    bool passed(std::uint32_t generation) const { return generation_ != generation; }

  private:
    int size_;
    int arrived_ = 0;
    std::uint32_t generation_ = 0;
    const char* what_ = nullptr;
    int line_ = 0;
};

// Runs body(i) for i in [0, count), each on a fibre, until all have returned. A body must not
// throw. Aborts the process, with a message that names the op, where no fibre can go on: some
// threads wait at a barrier that others never reach.
void run_fibres(const char* op, int count, Order order, const std::function<void(int)>& body);

// For bodies: lets the others run; until holds().
void yield_fibre(const char* what);
template <class Holds>
void wait_until(const char* what, Holds&& holds) {
    while (!holds()) yield_fibre(what);
}

// A program that is wrong in a way that a GPU would not report.
[[noreturn]] void die(const std::string& what);

}  // namespace fastnorm::cuda::host
