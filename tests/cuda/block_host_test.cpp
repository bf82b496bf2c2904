// The machine of fibres finds what it is there to find: each program here is wrong in one way, and
// must die with the message that says so.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>

#include "../cpp/expect.h"
#include "block_host.h"

namespace {

using fastnorm::cuda::Block;
using fastnorm::cuda::Reuse;
using fastnorm::cuda::Shape;

struct Kernel {
    static constexpr const char* name = "test";
    static constexpr int most_threads = 512;
    std::function<void(const Block&)> body;
    void operator()(const Block& block) const { body(block); }
};

Shape shape_of(std::int64_t blocks, int threads, int cluster = 1, bool resident = false) {
    return {blocks, threads, cluster, 1024, resident};
}

void run(const Shape& shape, std::function<void(const Block&)> body) {
    fastnorm::cuda::launch("test", Kernel{std::move(body)}, shape, nullptr);
}

// Runs f in a child, which has to abort with a message that holds `expected`.
void expect_death(const std::string& expected, const std::function<void()>& f) {
    int ends[2];
    if (pipe(ends) != 0) return expect(false, "no pipe");
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        f();
        _exit(0);
    }
    close(ends[1]);
    std::string text;
    char part[256];
    for (ssize_t n; (n = read(ends[0], part, sizeof(part))) > 0;) {
        text.append(part, static_cast<std::size_t>(n));
    }
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    expect(WIFSIGNALED(status) && text.find(expected) != std::string::npos,
           "no death by \"" + expected + "\", but: " + text);
}

alignas(16) float memory[64];

void test_wrong_programs() {
    expect_death("wait for ever: sync", [] {
        run(shape_of(1, 64), [](const Block& block) {
            if (block.thread() != 5) block.sync();
        });
    });
    expect_death("different barriers", [] {
        run(shape_of(1, 64), [](const Block& block) {
            if (block.warp() == 0) {
                block.sync();
            } else {
                block.sync();
            }
        });
    });
    expect_death("wait for ever: exchange", [] {
        run(shape_of(1, 32), [](const Block& block) {
            if (block.lane() < 16) block.exchange(1.0f, 1);
        });
    });
    expect_death("wait for ever: wait_for_cluster", [] {
        run(shape_of(2, 32, 2), [](const Block& block) {
            if (block.index() == 0) {
                block.arrive_at_cluster();
                block.wait_for_cluster();
            }
        });
    });
    expect_death("wait for ever: sync_grid", [] {
        run(shape_of(2, 32, 1, true), [](const Block& block) {
            if (block.index() == 0) block.sync_grid();
        });
    });
    expect_death("the blocks are not all resident",
                 [] { run(shape_of(2, 32), [](const Block& block) { block.sync_grid(); }); });
    expect_death("behind its shared memory", [] {
        run(shape_of(1, 32), [](const Block& block) {
            if (block.thread() == 0) block.shared()[1024] = 0;
        });
    });
    expect_death("not aligned to its 16 bytes", [] {
        run(shape_of(1, 32), [](const Block& block) {
            block.load<float>(reinterpret_cast<const char*>(memory + 1), Reuse::none);
        });
    });
    expect_death("no such block", [] {
        run(shape_of(2, 32, 2), [](const Block& block) { block.of_peer(block.shared(), 2); });
    });
    expect_death("threads of that block have ended", [] {
        run(shape_of(2, 32, 2), [](const Block& block) {
            block.arrive_at_cluster();
            block.wait_for_cluster();
            block.of_peer(block.shared(), 1 - static_cast<int>(block.index()));
        });
    });
    expect_death("has arrived at a cluster's barrier", [] {
        run(shape_of(2, 32, 2), [](const Block& block) { block.arrive_at_cluster(); });
    });
    expect_death("more stack than a fibre has", [] {
        run(shape_of(1, 32), [](const Block& block) {
            volatile char much[70 << 10];
            for (volatile char& byte : much) byte = static_cast<char>(block.lane());
            block.sync();
        });
    });
}

void test_memory_of_a_block() {
    // Poison at first, in every block; a copy is there after the wait, and no sooner.
    run(shape_of(3, 32), [](const Block& block) {
        const auto* const shared = reinterpret_cast<const float*>(block.shared());
        expect(shared[block.lane()] != shared[block.lane()], "shared memory is no NaN");
        block.sync();
        if (block.lane() < 16) {
            block.copy(block.shared() + block.lane() * 16,
                       reinterpret_cast<const char*>(memory + 4 * block.lane()));
        }
        const float own = shared[4 * (block.lane() % 16)];
        expect(block.lane() >= 16 || own != own, "a copy before the wait");
        block.wait_for_copies();
        block.sync();
        expect(shared[2 * block.lane()] == memory[2 * block.lane()], "not copied");
    });
}

void test_meetings() {
    for (const auto order :
         {fastnorm::cuda::host::Order::forward, fastnorm::cuda::host::Order::reversed,
          fastnorm::cuda::host::Order::shuffled}) {
        fastnorm::cuda::host::control().order = order;
        run(shape_of(4, 64, 4), [](const Block& block) {
            auto* const shared = reinterpret_cast<int*>(block.shared());
            if (block.thread() == 0) *shared = 100 + static_cast<int>(block.index());
            block.arrive_at_cluster();
            block.wait_for_cluster();
            for (int rank = 0; rank < 4; ++rank) {
                expect(*block.of_peer(shared, rank) == 100 + rank, "a peer's memory");
            }
            expect(block.exchange(block.lane(), 3) == (block.lane() ^ 3), "an exchange");
            expect(block.any(block.thread() == 40) == (block.warp() == 1), "any");
            block.arrive_at_cluster();
            block.wait_for_cluster();
        });
        static std::uint32_t counter;
        counter = 0;
        run(shape_of(3, 32, 1, true), [](const Block& block) {
            if (block.thread() == 0) block.add(&counter, 1);
            block.sync_grid();
            expect(counter == 3, "blocks that wait for each other");
        });
    }
}

void test_launches_that_fail() {
    const auto refused = [](const Shape& shape) {
        try {
            run(shape, [](const Block&) {});
        } catch (const fastnorm::cuda_error&) {
            return true;
        }
        return false;
    };
    expect(refused(shape_of(0, 32)), "no blocks");
    expect(refused(shape_of(1, 33)), "part of a warp");
    expect(refused(shape_of(1, 1024)), "more threads than the kernel may have");
    expect(refused(shape_of(3, 32, 2)), "part of a cluster");
    expect(refused({1, 32, 1, 1 << 20, false}), "too much shared memory");
    expect(refused({1000, 32, 1, 1024, true}), "more resident blocks than fit");
}

}  // namespace

int main() {
    for (int i = 0; i < 64; ++i) memory[i] = static_cast<float>(i);
    test_wrong_programs();
    test_memory_of_a_block();
    test_meetings();
    test_launches_that_fail();
    return test_result();
}
