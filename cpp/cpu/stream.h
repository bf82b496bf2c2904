// Where a map puts its results: straight into the tensor, or, for outputs that no cache will hold,
// past the cache: whole lines from registers, and what lies between them through a small buffer
// that turns runs of any length and alignment into lines. Compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/portable.h"
#include "cpu/lanes.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// A map produces at most this many elements between open() and close() if they go through the
// buffer.
constexpr std::int64_t segment = 128;
// A row's head and tail go through the buffer: fewer elements between them are not worth it.
constexpr std::int64_t shortest_direct = 128;

// How many elements come before the start of the next cache line, or before a line's own start.
template <class T>
FASTNORM_FN std::int64_t head_of_line(const T* p) {
    constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
    const auto index = reinterpret_cast<std::uintptr_t>(p) / sizeof(T);
    return (line - static_cast<std::int64_t>(index) % line) % line;
}

// The elements of [from, to), counted from `from` on, that can be direct pieces, as for_segments()
// has them: whole packs from the start of a line; or all, if the row is whole packs that can be
// stored so where they are: then the next row fills the line that this one ends with.
struct Direct {
    std::int64_t head, count;

    template <class T>
    static FASTNORM_FN Direct of(const T* result, std::int64_t from, std::int64_t to) {
        constexpr std::int64_t pack = lanes<accumulator_t<T>>;
        const auto address = reinterpret_cast<std::uintptr_t>(result + from);
        if ((to - from) % pack == 0 && address % stream_alignment == 0) return {0, to - from};
        const std::int64_t head = head_of_line(result + from);
        const std::int64_t count = (to - from - head) / pack * pack;
        return {head, count >= shortest_direct ? count : 0};
    }
};

// The element, counted from `from` on, with which the longest piece of a row of results begins.
template <class T>
FASTNORM_FN std::int64_t head_of_segments(bool stream, const T* result, std::int64_t from,
                                          std::int64_t to) {
    const Direct direct = Direct::of(result, from, to);
    return stream && direct.count > 0 ? direct.head : 0;
}

// Cuts [from, to) of a row of results into pieces of at most longest elements, and calls
// f(i, count, direct) for each. Those to be streamed: direct ones are whole packs to be written
// past the cache from registers; the others have at most segment elements and go through a sink's
// buffer. second: another row of results that is written at the same time, or null.
template <class T, std::int64_t longest = INT64_MAX, class F>
FASTNORM_FN void for_segments(bool stream, const T* result, const T* second, std::int64_t from,
                              std::int64_t to, F&& f) {
    using A = accumulator_t<T>;
    static_assert(longest == INT64_MAX || longest % lanes<A> == 0, "direct pieces are whole packs");
    const Direct body = Direct::of(result, from, to);
    const bool alike = second == nullptr || Direct::of(second, from, to).head == body.head;
    const bool any = stream && alike && body.count > 0;
    const std::int64_t begin = any ? from + body.head : to;  // of the direct pieces
    const std::int64_t end = begin + (any ? body.count : 0);
    for (std::int64_t i = from; i < to;) {
        const bool direct = begin <= i && i < end;
        const std::int64_t most = stream && !direct ? segment : longest;
        const std::int64_t rest = (i < begin ? begin : direct ? end : to) - i;
        const std::int64_t count = rest < most ? rest : most;
        f(i, count, direct);
        i += count;
    }
}

template <class T>
class Sink {
  public:
    FASTNORM_FN explicit Sink(bool stream) : stream_(stream) {}
    Sink(const Sink&) = delete;
    Sink& operator=(const Sink&) = delete;
    FASTNORM_FN ~Sink() {
        if (stream_) flush_rest();
    }

    // Fetches the lines of which [begin, end) has only a part: those are written like any others,
    // and the stores behind them wait until they have come.
    FASTNORM_FN void expect(const T* begin, const T* end) const {
        if (!stream_) return;
        if (reinterpret_cast<std::uintptr_t>(begin) % line_bytes != 0)
            __builtin_prefetch(begin, 1, 3);
        if (reinterpret_cast<std::uintptr_t>(end) % line_bytes != 0) __builtin_prefetch(end, 1, 3);
    }

    // Where to write the elements that belong at target: at most segment of them if they are
    // streamed, unless direct: those are whole packs to a line's start, of which nothing is known
    // here.
    FASTNORM_FN T* open(T* target, bool direct) {
        if (!stream_ || direct) return target;
        const auto address = reinterpret_cast<std::uintptr_t>(target);
        if (address != line_ + filled_) {
            flush_rest();
            line_ = address & ~std::uintptr_t{line_bytes - 1};
            begin_ = filled_ = address - line_;
        }
        return reinterpret_cast<T*>(buffer_ + filled_);
    }

    FASTNORM_FN void close(std::int64_t count, bool direct) {
        if (!stream_ || direct) return;
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
