// The Block that runs a kernel on the CPU, each of its threads a fibre: see cuda/block.h. Beyond
// what the device does it
//   - fills shared memory before a block begins, by the order with NaN or with large numbers, and
//     takes a copy() to its place no sooner than at wait_for_copies();
//   - dies where threads do not meet at the same barrier, where an access is not aligned, where a
//     block looks at a peer's memory that may be gone or writes behind its own, or where a launch
//     is beyond the limits;
//   - counts the bytes that are loaded and stored.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cuda/block.h"
#include "fibres.h"

#define FASTNORM_DEVICE inline

namespace fastnorm::cuda {

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return to_float(x); }
inline float widen(Half x) { return to_float(x); }
template <class A, class T>
void narrow(A x, T& to) {
    from_float(x, to);
}

namespace host {

// Bytes of tensors, by the way that they were accessed.
struct Traffic {
    std::int64_t loaded = 0, stored = 0;                    // 16 at a time
    std::int64_t loaded_elements = 0, stored_elements = 0;  // one element at a time
};

struct Launch {
    const char* op;
    const char* kernel;
    Shape shape;
    Stream stream;
};

// What tests set and look at.
struct Control {
    // Of a small machine of the H200's kind, unless set otherwise.
    Limits limits{4, 232448, 233472, 1024, 50 << 20, {4, 4, 4, 8, 16}};
    Order order = Order::forward;
    Traffic traffic;
    std::vector<Launch> launches;
    std::vector<std::pair<Stream, Stream>> orders;
    std::int64_t memory_in_use = 0;
    int refused = -1;   // the launch that fails
    bool busy = false;  // events have not passed
};
Control& control();

struct BlockState {
    std::int64_t index, blocks;
    int threads;
    char* shared;
    Barrier barrier;
    struct Warp {
        Barrier barrier{warp_size};
        std::uint64_t exchanged[2][warp_size];
    };
    std::vector<Warp> warps;
    // Of the cluster.
    BlockState* peers;
    int team;
    Barrier* cluster;
    int running;  // threads that have not ended
    // Of the grid; null where its blocks are not all resident.
    Barrier* grid;
};

struct ThreadState {
    std::uint32_t arrived_at_cluster = 0;
    bool waits_for_cluster = false;
    std::uint32_t exchanges = 0;
    std::vector<std::pair<char*, const char*>> copies;
};

// Runs thread(block state, thread state, number) for every thread of every block.
using ThreadMain = std::function<void(BlockState&, ThreadState&, int)>;
void run_grid(const char* op, const char* kernel, const Shape& shape, int most_threads,
              Stream stream, const ThreadMain& thread);

}  // namespace host

class Block {
  public:
    Block(host::BlockState& state, host::ThreadState& own, int thread)
        : state_(state), own_(own), thread_(thread) {}

    int thread() const { return thread_; }
    int threads() const { return state_.threads; }
    int lane() const { return thread_ % warp_size; }
    int warp() const { return thread_ / warp_size; }
    int warps() const { return threads() / warp_size; }
    std::int64_t index() const { return state_.index; }
    std::int64_t blocks() const { return state_.blocks; }

    void sync(int line = __builtin_LINE()) const { meet(state_.barrier, "sync", line); }
    template <class A>
    A exchange(A value, int mask, int line = __builtin_LINE()) const {
        exchanged(value, "exchange", line, [&](const std::uint64_t* slots) {
            std::memcpy(&value, &slots[lane() ^ mask], sizeof(A));
        });
        return value;
    }
    bool any(bool condition, int line = __builtin_LINE()) const {
        exchanged(std::uint64_t{condition}, "any", line, [&](const std::uint64_t* slots) {
            condition = std::any_of(slots, slots + warp_size, [](auto c) { return c != 0; });
        });
        return condition;
    }
    void sync_grid(int line = __builtin_LINE()) const {
        if (state_.grid == nullptr) host::die("sync_grid: the blocks are not all resident");
        meet(*state_.grid, "sync_grid", line);
    }
    char* shared() const { return state_.shared; }

    void arrive_at_cluster(int line = __builtin_LINE()) const {
        own_.arrived_at_cluster = state_.cluster->arrive("arrive_at_cluster", line);
        own_.waits_for_cluster = true;
    }
    void wait_for_cluster() const {
        own_.waits_for_cluster = false;
        host::wait_until("wait_for_cluster",
                         [&] { return state_.cluster->passed(own_.arrived_at_cluster); });
    }
    template <class V>
    const V* of_peer(const V* p, int rank) const {
        if (rank < 0 || rank >= state_.team) host::die("of_peer: there is no such block");
        if (state_.peers[rank].running < state_.threads) {
            host::die("of_peer: threads of that block have ended, and so may its memory");
        }
        const auto offset = reinterpret_cast<const char*>(p) - state_.shared;
        return reinterpret_cast<const V*>(state_.peers[rank].shared + offset);
    }

    template <class T>
    Pack<T> load(const char* p, Reuse) const {
        host::control().traffic.loaded += 16;
        return *aligned<const Pack<T>>(p);
    }
    template <class T>
    void store(char* p, const Pack<T>& pack) const {
        host::control().traffic.stored += 16;
        *aligned<Pack<T>>(p) = pack;
    }
    template <class V>
    V load_element(const V* p) const {
        host::control().traffic.loaded_elements += sizeof(V);
        return *aligned<const V>(p);
    }
    template <class V>
    void store_element(V* p, V value) const {
        host::control().traffic.stored_elements += sizeof(V);
        *aligned<V>(p) = value;
    }
    void copy(char* to, const char* from) const {
        host::control().traffic.loaded += 16;
        aligned<Pack<float>>(to);
        aligned<const Pack<float>>(from);
        own_.copies.emplace_back(to, from);
    }
    void wait_for_copies() const {
        for (const auto& [to, from] : own_.copies) std::memcpy(to, from, 16);
        own_.copies.clear();
    }

    template <class V>
    void publish(V* p, V value) const {
        *p = value;
    }
    template <class V>
    V fresh(const V* p) const {
        return *p;
    }
    std::uint32_t add(std::uint32_t* counter, std::uint32_t n) const {
        const std::uint32_t old = *counter;
        *counter += n;
        return old;
    }

  private:
    host::BlockState::Warp& my_warp() const {
        return state_.warps[static_cast<std::size_t>(warp())];
    }
    static void meet(host::Barrier& barrier, const char* what, int line) {
        const std::uint32_t generation = barrier.arrive(what, line);
        host::wait_until(what, [&] { return barrier.passed(generation); });
    }
    // Calls look(the values of all lanes).
    template <class A, class Look>
    void exchanged(A value, const char* what, int line, Look&& look) const {
        static_assert(sizeof(A) <= sizeof(std::uint64_t));
        auto& slots = my_warp().exchanged[own_.exchanges++ % 2];  // nobody is two ahead
        std::memcpy(&slots[lane()], &value, sizeof(A));
        meet(my_warp().barrier, what, line);
        look(slots);
    }
    template <class V, class P>
    static V* aligned(P* p) {
        if (reinterpret_cast<std::uintptr_t>(p) % sizeof(V) != 0) {
            host::die("an access is not aligned to its " + std::to_string(sizeof(V)) + " bytes");
        }
        return reinterpret_cast<V*>(p);
    }

    host::BlockState& state_;
    host::ThreadState& own_;
    int thread_;
};

template <class Kernel>
void launch(const char* op, const Kernel& kernel, const Shape& shape, Stream stream) {
    const Kernel copy = kernel;
    host::run_grid(op, Kernel::name, shape, Kernel::most_threads, stream,
                   [&](host::BlockState& state, host::ThreadState& own, int thread) {
                       copy(Block(state, own, thread));
                   });
}

}  // namespace fastnorm::cuda
