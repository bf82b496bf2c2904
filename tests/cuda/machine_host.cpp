// The machine of the fibres: launches one block, one cluster, or one grid of blocks that wait for
// each other after the other.
#include "block_host.h"

#include <bit>
#include <cstdlib>
#include <limits>
#include <memory>

#include "fastnorm/fastnorm.hpp"

namespace fastnorm::cuda {

namespace host {

Control& control() {
    static Control control;
    return control;
}

namespace {

void check(const char* op, const Shape& shape, int most_threads) {
    const Limits& limits = control().limits;
    const auto refuse = [&](const std::string& what) {
        throw cuda_error(std::string(op) + ": launch failed: " + what);
    };
    if (shape.blocks < 1 || shape.blocks > std::numeric_limits<std::int32_t>::max()) {
        refuse("blocks");
    }
    if (shape.threads < warp_size || shape.threads > most_threads ||
        shape.threads % warp_size != 0) {
        refuse("threads");
    }
    if (shape.shared_bytes > limits.shared_of_block) refuse("shared memory");
    const int size = std::countr_zero(static_cast<unsigned>(shape.cluster));
    if (shape.cluster != 1 << size || size >= Limits::cluster_sizes ||
        limits.in_clusters[size] == 0 || shape.blocks % shape.cluster != 0) {
        refuse("cluster");
    }
    const std::int64_t of_one = shape.shared_bytes + limits.shared_reserved;
    const std::int64_t resident =
        limits.multiprocessors * (limits.shared_of_multiprocessor / of_one);
    if (shape.resident && shape.blocks > resident) refuse("more blocks than fit at once");
}

}  // namespace

void run_grid(const char* op, const char* kernel, const Shape& shape, int most_threads,
              Stream stream, const ThreadMain& thread) {
    check(op, shape, most_threads);
    if (control().refused == static_cast<int>(control().launches.size())) {
        throw cuda_error(std::string(op) + ": launch failed: refused");
    }
    control().launches.push_back({op, kernel, shape, stream});
    const std::int64_t together = shape.resident ? shape.blocks : shape.cluster;
    constexpr std::size_t guard = 16;  // behind what a block has
    const auto bytes = static_cast<std::size_t>(shape.shared_bytes + 15) / 16 * 16 + guard;
    const auto count = static_cast<std::size_t>(together);
    std::vector<Pack<float>> memory(count * (bytes / 16));
    std::vector<BlockState> states(count);
    std::vector<ThreadState> threads(count * static_cast<std::size_t>(shape.threads));
    const std::int64_t groups = shape.blocks / together;
    for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t group = control().order == Order::forward ? g : groups - 1 - g;
        // NaN, or, so that results differ where they come from it, something large.
        const char poison = control().order == Order::forward ? '\xff' : '\x7f';
        std::memset(static_cast<void*>(memory.data()), poison, memory.size() * 16);
        std::vector<std::unique_ptr<Barrier>> clusters;
        Barrier grid(static_cast<int>(threads.size()));
        for (std::int64_t b = 0; b < together; ++b) {
            BlockState& state = states[static_cast<std::size_t>(b)];
            if (b % shape.cluster == 0) {
                clusters.push_back(std::make_unique<Barrier>(shape.cluster * shape.threads));
            }
            state.index = group * together + b;
            state.blocks = shape.blocks;
            state.threads = shape.threads;
            state.shared =
                reinterpret_cast<char*>(memory.data()) + static_cast<std::size_t>(b) * bytes;
            state.barrier = Barrier(shape.threads);
            state.warps.assign(static_cast<std::size_t>(shape.threads / warp_size), {});
            state.team = shape.cluster;
            state.peers = &state - b % shape.cluster;
            state.cluster = clusters.back().get();
            state.grid = shape.resident ? &grid : nullptr;
            state.running = shape.threads;
        }
        for (ThreadState& own : threads) own = {};
        run_fibres(op, static_cast<int>(threads.size()), control().order, [&](int i) {
            BlockState& state = states[static_cast<std::size_t>(i / shape.threads)];
            ThreadState& own = threads[static_cast<std::size_t>(i)];
            thread(state, own, i % shape.threads);
            --state.running;
            if (own.waits_for_cluster) die("a thread ends that has arrived at a cluster's barrier");
        });
        for (std::size_t b = 0; b < count; ++b) {
            const char* const end = states[b].shared + shape.shared_bytes;
            const auto untouched = [&](char c) { return c == poison; };
            if (!std::all_of(end, end + (bytes - static_cast<std::size_t>(shape.shared_bytes)),
                             untouched)) {
                die("a block has written behind its shared memory");
            }
        }
    }
}

}  // namespace host

OnDevice::OnDevice(const char* op, int device) : device_(device), previous_(0) {
    if (device == 0) return;
    throw cuda_error(std::string(op) + ": there is no device " + std::to_string(device) +
                     ", expected 0 to 0");
}
OnDevice::~OnDevice() = default;
const Limits& OnDevice::limits() const { return host::control().limits; }

int device_count() { return 1; }
std::string why_unavailable() { return ""; }
int device_of(const void*) { return 0; }
void order(Stream stream, Stream after) { host::control().orders.push_back({stream, after}); }
void upload(void* to, const void* from, std::size_t bytes, Stream) { std::memcpy(to, from, bytes); }
void download(void* to, const void* from, std::size_t bytes, Stream) {
    std::memcpy(to, from, bytes);
}

Memory::Memory(std::size_t bytes, Stream stream) : stream_(stream) {
    auto* const block = static_cast<char*>(std::aligned_alloc(256, (bytes + 511) / 256 * 256));
    if (block == nullptr) throw cuda_error("no memory");
    std::memset(block, 0xff, bytes);
    data_ = block;
    ++host::control().memory_in_use;
}
Memory::~Memory() {
    std::free(data_);
    --host::control().memory_in_use;
}
Event::Event(Stream) {}
Event::~Event() = default;
bool Event::has_passed() const { return !host::control().busy; }
void clear(char* memory, std::size_t bytes, Stream) { std::memset(memory, 0, bytes); }

}  // namespace fastnorm::cuda

// What tests call from Python, by ctypes.
#define EXPORTED extern "C" __attribute__((visibility("default")))

using fastnorm::cuda::host::control;

EXPORTED void fastnorm_host_reset(const std::int64_t* limits, int order) {
    const std::int64_t memory_in_use = control().memory_in_use;
    control() = {};
    control().memory_in_use = memory_in_use;
    control().order = static_cast<fastnorm::cuda::host::Order>(order);
    const auto multiprocessors = static_cast<int>(limits[0]);
    control().limits = {multiprocessors, limits[1], limits[2], limits[3], limits[5], {}};
    // The tests are content with machines that are smaller than a cluster.
    for (int i = 0; i < fastnorm::cuda::Limits::cluster_sizes && 1 << i <= limits[4]; ++i) {
        control().limits.in_clusters[i] = std::max(multiprocessors >> i, 1) << i;
    }
}

EXPORTED void fastnorm_host_busy(int busy) { control().busy = busy != 0; }

EXPORTED void fastnorm_host_refuse(int launch) { control().refused = launch; }

EXPORTED int fastnorm_host_launches(int i, std::int64_t* found) {
    if (i >= 0) {
        const auto& launch = control().launches[static_cast<std::size_t>(i)];
        const std::int64_t values[] = {
            launch.shape.blocks,           launch.shape.threads,
            launch.shape.cluster,          launch.shape.shared_bytes,
            launch.shape.resident ? 1 : 0, reinterpret_cast<std::int64_t>(launch.stream)};
        std::copy(std::begin(values), std::end(values), found);
    }
    return static_cast<int>(control().launches.size());
}

EXPORTED const char* fastnorm_host_kernel(int i) {
    return control().launches[static_cast<std::size_t>(i)].kernel;
}

EXPORTED void fastnorm_host_traffic(std::int64_t* found) {
    const auto& traffic = control().traffic;
    found[0] = traffic.loaded;
    found[1] = traffic.stored;
    found[2] = traffic.loaded_elements;
    found[3] = traffic.stored_elements;
}

EXPORTED int fastnorm_host_waits(int i, std::int64_t* found) {
    if (i >= 0) {
        const auto& [stream, after] = control().orders[static_cast<std::size_t>(i)];
        found[0] = reinterpret_cast<std::int64_t>(stream);
        found[1] = reinterpret_cast<std::int64_t>(after);
    }
    return static_cast<int>(control().orders.size());
}

EXPORTED std::int64_t fastnorm_host_memory_in_use() { return control().memory_in_use; }
