// Where a map puts its results: straight into the tensor, or, for outputs that no cache will hold,
// through a small buffer that turns runs of any length and alignment into whole cache lines, which
// are then written past the cache. Included by kernels.cpp, once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/portable.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// A map produces at most this many elements between open() and close().
constexpr std::int64_t segment = 128;

template <class T>
class Sink {
  public:
    FASTNORM_FN explicit Sink(bool stream) : stream_(stream) {}
    Sink(const Sink&) = delete;
    Sink& operator=(const Sink&) = delete;
    FASTNORM_FN ~Sink() {
        if (!stream_) return;
        flush_rest();
        stream_fence();
    }

    // Where to write the count <= segment elements that belong at target.
    FASTNORM_FN T* open(T* target) {
        if (!stream_) return target;
        const auto address = reinterpret_cast<std::uintptr_t>(target);
        if (address != line_ + filled_) {
            flush_rest();
            line_ = address & ~std::uintptr_t{line_bytes - 1};
            begin_ = filled_ = address - line_;
        }
        return reinterpret_cast<T*>(buffer_ + filled_);
    }

    FASTNORM_FN void close(std::int64_t count) {
        if (!stream_) return;
        filled_ += static_cast<std::uintptr_t>(count) * sizeof(T);
        if (filled_ >= line_bytes) flush_lines();
    }

  private:
    static constexpr std::uintptr_t line_bytes = 64;

    // The buffer's offset 0 corresponds to the aligned address line_; [begin_, filled_) is valid.
    FASTNORM_FN void flush_lines() {
        std::uintptr_t offset = 0;
        if (begin_ != 0) {  // the line before begin_ holds another run's elements
            std::memcpy(at(begin_), buffer_ + begin_, line_bytes - begin_);
            begin_ = 0;
            offset = line_bytes;
        }
        for (; offset + line_bytes <= filled_; offset += line_bytes) {
            stream_line(at(offset), buffer_ + offset);
        }
        const std::uintptr_t rest = filled_ - offset;
        std::memcpy(buffer_, buffer_ + offset, line_bytes);
        line_ += offset;
        filled_ = rest;
    }

    FASTNORM_FN void flush_rest() {
        if (filled_ > begin_) std::memcpy(at(begin_), buffer_ + begin_, filled_ - begin_);
        begin_ = filled_ = 0;
    }

    FASTNORM_FN void* at(std::uintptr_t offset) const {
        return reinterpret_cast<void*>(line_ + offset);
    }

    alignas(64) unsigned char buffer_[segment * sizeof(T) + 2 * line_bytes];
    std::uintptr_t line_ = 0;
    std::uintptr_t begin_ = 0;
    std::uintptr_t filled_ = 0;
    bool stream_;
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
