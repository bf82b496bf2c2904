// The machine as the driver sees it: its limits, memory in stream order, the shape of a launch. Two
// implementations: runtime.cu over the CUDA runtime, and the tests', which run kernels on the CPU.
// All but the limits throw fastnorm::cuda_error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fastnorm::cuda {

// A cudaStream_t.
using Stream = void*;

struct Limits {
    int multiprocessors = 1;
    std::int64_t shared_of_block = 0;           // bytes that a block may have
    std::int64_t shared_of_multiprocessor = 0;  // and all that share a multiprocessor
    std::int64_t shared_reserved = 0;           // of those, what the system takes for each block
    std::int64_t cache = 0;                     // bytes of the L2 cache

    // Multiprocessors that clusters of 1, 2, 4, 8 and 16 blocks can be on at a time, each block on
    // one of its own: a cluster has to find room in one part of the machine. 0: there are none of
    // that size.
    static constexpr int cluster_sizes = 5;
    int in_clusters[cluster_sizes] = {1};
};

// Makes a device the current one while it lives. op is for errors.
class OnDevice {
  public:
    OnDevice(const char* op, int device);
    ~OnDevice();
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    const Limits& limits() const;

  private:
    int device_;
    int previous_;
};

// Memory of the current device, from its pool, for work in stream order: it is given back behind
// all that is in the stream by then, whatever the current device is. Aligned to 256 bytes.
class Memory {
  public:
    Memory(std::size_t bytes, Stream stream);
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    char* data() const { return data_; }

  private:
    char* data_ = nullptr;
    Stream stream_;
    int device_ = 0;
};

// Makes memory of the current device zero, in the stream's order.
void clear(char* memory, std::size_t bytes, Stream stream);

// How many devices there are; why there is none, or empty.
int device_count();
std::string why_unavailable();

// The device that memory belongs to; the current one for null.
int device_of(const void* pointer);

// All that is in `after` by now happens before what comes into `stream`. Nothing is done where one
// of them is being captured in a graph and the other is not: what a graph works on has to be ready
// when it is captured.
void order(Stream stream, Stream after);

// What is in a stream of the current device by now: whether that is done. What is captured in a
// graph never begins here: it counts as done.
class Event {
  public:
    explicit Event(Stream stream);
    ~Event();
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;

    bool has_passed() const;

  private:
    void* event_ = nullptr;  // a cudaEvent_t
};

// Between the CPU's memory and the current device's, in the stream's order; both have happened on
// return.
void upload(void* to, const void* from, std::size_t bytes, Stream stream);
void download(void* to, const void* from, std::size_t bytes, Stream stream);

struct Shape {
    std::int64_t blocks = 1;
    int threads = 32;
    int cluster = 1;
    std::int64_t shared_bytes = 0;
    bool resident = false;  // all blocks at once, as they wait for each other
};

}  // namespace fastnorm::cuda
