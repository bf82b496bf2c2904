// The machine over the CUDA runtime, which is linked statically and finds the driver when it is
// first called: without one there are no devices, and nothing else fails.
#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <set>

#include "fastnorm/fastnorm.hpp"

namespace fastnorm::cuda {

namespace {

[[noreturn]] void fail(const std::string& what, cudaError_t error) {
    cudaGetLastError();  // not again by the next call
    throw cuda_error(what + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) +
                     ")");
}

void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) fail(what, error);
}

cudaStream_t as_stream(Stream stream) { return static_cast<cudaStream_t>(stream); }

constexpr int most_devices = 64;

// A kernel with nothing in it, to ask what a launch of its shape may have.
__global__ void probe() {}

// How many clusters of a size can be on the current device at a time, where each block has all of a
// multiprocessor's shared memory.
int clusters_at_a_time(int size, const cudaDeviceProp& properties) {
    // Nor do kernels know clusters that were compiled for an older device than this one.
    cudaFuncAttributes compiled{};
    check(cudaFuncGetAttributes(&compiled, probe), "cuda: what a kernel was compiled for");
    if (properties.major < 9 || compiled.ptxVersion < 90) return 0;
    const auto shared = static_cast<int>(properties.sharedMemPerBlockOptin);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(size);
    config.blockDim = 384;
    config.dynamicSmemBytes = static_cast<std::size_t>(shared);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    const bool fits = cudaFuncSetAttribute(probe, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           shared) == cudaSuccess &&
                      cudaFuncSetAttribute(probe, cudaFuncAttributeNonPortableClusterSizeAllowed,
                                           1) == cudaSuccess &&
                      cudaOccupancyMaxActiveClusters(&clusters, probe, &config) == cudaSuccess;
    cudaGetLastError();
    return fits ? clusters : 0;
}

// An event behind what is in a stream by now.
cudaEvent_t recorded(Stream stream, const char* what) {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), what);
    const cudaError_t error = cudaEventRecord(event, as_stream(stream));
    if (error == cudaSuccess) return event;
    cudaEventDestroy(event);
    fail(what, error);
}

// What is found out once of each device.
struct DeviceState {
    std::once_flag once;
    Limits limits;
    cudaMemPool_t pool = nullptr;

    void find(int device) {
        cudaDeviceProp properties{};
        check(cudaGetDeviceProperties(&properties, device), "cuda: properties of the device");
        limits.multiprocessors = properties.multiProcessorCount;
        limits.shared_of_block = static_cast<std::int64_t>(properties.sharedMemPerBlockOptin);
        limits.shared_of_multiprocessor =
            static_cast<std::int64_t>(properties.sharedMemPerMultiprocessor);
        limits.shared_reserved = static_cast<std::int64_t>(properties.reservedSharedMemPerBlock);
        limits.cache = properties.l2CacheSize;
        limits.in_clusters[0] = limits.multiprocessors;
        for (int i = 1; i < Limits::cluster_sizes; ++i) {
            limits.in_clusters[i] = clusters_at_a_time(1 << i, properties) << i;
        }

        cudaMemPoolProps pool_properties{};
        pool_properties.allocType = cudaMemAllocationTypePinned;
        pool_properties.location = {cudaMemLocationTypeDevice, device};
        check(cudaMemPoolCreate(&pool, &pool_properties), "cuda: a memory pool");
        // What is given back stays in the pool: to take it from the system again would wait.
        std::uint64_t kept = ~std::uint64_t{0};
        check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept),
              "cuda: a memory pool");
    }
};

// Of the current device.
DeviceState& state_of(int device) {
    static std::array<DeviceState, most_devices> states;
    DeviceState& state = states.at(static_cast<std::size_t>(device));
    std::call_once(state.once, [&] { state.find(device); });
    return state;
}

int current_device() {
    int device = 0;
    check(cudaGetDevice(&device), "cuda: the current device");
    return device;
}

bool is_capturing(Stream stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    // The legacy stream says so by an error where another one is being captured.
    const cudaError_t error = cudaStreamIsCapturing(as_stream(stream), &status);
    if (error != cudaSuccess) cudaGetLastError();
    return error == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

// More than 48 KB of shared memory, and clusters of more than 8 blocks, have to be allowed, once
// for each kernel on each device.
void allow(const void* function, std::int64_t shared_bytes) {
    static std::mutex mutex;
    static std::set<std::pair<int, const void*>> allowed;
    const int device = current_device();
    const std::lock_guard lock(mutex);
    if (allowed.contains({device, function})) return;
    const Limits& limits = state_of(device).limits;
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(std::max(limits.shared_of_block, shared_bytes))),
          "cuda: shared memory of a kernel");
    // As much as there is for blocks beside each other, rather than for the L1 cache.
    check(cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared),
          "cuda: shared memory of a kernel");
    if (limits.in_clusters[4] > 0) {
        check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
              "cuda: clusters of a kernel");
    }
    allowed.insert({device, function});
}

}  // namespace

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return std::min(count, most_devices);
}

std::string why_unavailable() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess) return count > 0 ? "" : "there is no CUDA device";
    // Of a driver that is not there the runtime says that it is too old.
    int driver = 0;
    const bool found = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
    cudaGetLastError();
    return std::string("there is no CUDA device: ") +
           (found ? cudaGetErrorString(error) : "no NVIDIA driver (libcuda.so.1) was found");
}

int device_of(const void* pointer) {
    if (pointer == nullptr) return current_device();
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, pointer), "cuda: the device of an array");
    return attributes.device;
}

void order(Stream stream, Stream after) {
    if (is_capturing(stream) != is_capturing(after)) return;
    constexpr const char* what = "cuda: order of streams";
    const cudaEvent_t event = recorded(after, what);
    const cudaError_t waits = cudaStreamWaitEvent(as_stream(stream), event, 0);
    cudaEventDestroy(event);  // it goes when it is no longer waited for
    check(waits, what);
}

Event::Event(Stream stream) {
    if (!is_capturing(stream)) event_ = recorded(stream, "cuda: an event");
}

Event::~Event() {
    if (event_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

bool Event::has_passed() const {
    if (event_ == nullptr) return true;
    const bool passed = cudaEventQuery(static_cast<cudaEvent_t>(event_)) != cudaErrorNotReady;
    cudaGetLastError();
    return passed;
}

void upload(void* to, const void* from, std::size_t bytes, Stream stream) {
    if (bytes == 0) return;
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, as_stream(stream)),
          "cuda: a copy to the device");
    check(cudaStreamSynchronize(as_stream(stream)), "cuda: a copy to the device");
}

void download(void* to, const void* from, std::size_t bytes, Stream stream) {
    if (bytes == 0) return;
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, as_stream(stream)),
          "cuda: a copy from the device");
    check(cudaStreamSynchronize(as_stream(stream)), "cuda: a copy from the device");
}

OnDevice::OnDevice(const char* op, int device) : device_(device), previous_(device) {
    const int count = device_count();
    if (count == 0) throw cuda_error(std::string(op) + ": " + why_unavailable());
    if (device < 0 || device >= count) {
        throw cuda_error(std::string(op) + ": there is no device " + std::to_string(device) +
                         ", expected 0 to " + std::to_string(count - 1));
    }
    previous_ = current_device();
    if (previous_ != device) check(cudaSetDevice(device), "cuda: the current device");
}

OnDevice::~OnDevice() {
    if (previous_ != device_) cudaSetDevice(previous_);
}

const Limits& OnDevice::limits() const { return state_of(device_).limits; }

Memory::Memory(std::size_t bytes, Stream stream) : stream_(stream), device_(current_device()) {
    void* data = nullptr;
    const cudaError_t error =
        cudaMallocFromPoolAsync(&data, bytes, state_of(device_).pool, as_stream(stream));
    if (error != cudaSuccess) fail("cuda: " + std::to_string(bytes) + " bytes of memory", error);
    data_ = static_cast<char*>(data);
}

// The default stream is another one on every device. Nothing is said of a failure: where a process
// ends, or in a child of fork(), there may be no device any more.
Memory::~Memory() {
    int previous = device_;
    cudaGetDevice(&previous);
    if (previous != device_) cudaSetDevice(device_);
    cudaFreeAsync(data_, as_stream(stream_));
    if (previous != device_) cudaSetDevice(previous);
    cudaGetLastError();
}

void clear(char* memory, std::size_t bytes, Stream stream) {
    check(cudaMemsetAsync(memory, 0, bytes, as_stream(stream)), "cuda: memory of zeros");
}

void launch_kernel(const char* op, const char* kernel, const void* function, void** arguments,
                   const Shape& shape, Stream stream) {
    constexpr std::int64_t worth_a_carveout = 4 << 10;  // more than what passes over the L1 use
    if (shape.shared_bytes > worth_a_carveout || shape.cluster > 8) {
        allow(function, shape.shared_bytes);
    }
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(shape.blocks);
    config.blockDim = static_cast<unsigned>(shape.threads);
    config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
    config.stream = as_stream(stream);
    config.attrs = attributes;
    if (shape.cluster > 1) {
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    }
    if (shape.resident) {
        attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
        attributes[config.numAttrs++].val.cooperative = 1;
    }
    const cudaError_t error = cudaLaunchKernelExC(&config, function, arguments);
    if (error == cudaSuccess) return;
    fail(std::string(op) + ": launch of " + kernel + " on " + std::to_string(shape.blocks) +
             " blocks of " + std::to_string(shape.threads) + " threads, clusters of " +
             std::to_string(shape.cluster) + ", " + std::to_string(shape.shared_bytes) +
             " bytes of shared memory",
         error);
}

}  // namespace fastnorm::cuda
