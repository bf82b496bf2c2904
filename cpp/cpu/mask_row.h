// A row of the mask, of which packs and parts of packs are stored and loaded. Compiled once per
// instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/lanes.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// A run's row of the mask from some element of it on, one bit an element. Packs may start anywhere
// in a byte; a partial pack is stored after what comes before it in a row, and before what comes
// after it. Where short rows are taken several at a time as one (columns), a pack may have bits of
// many of them.
struct MaskRow {
    unsigned char* bytes = nullptr;  // null: no mask
    int shift = 0;                   // the element's bit in the first byte
    std::int64_t run = 0;            // elements of a row that ends within a byte, else 0, and
    std::int64_t first = 0;          // the element: bytes are then those of its row

    explicit operator bool() const { return bytes != nullptr; }

    // count: whole bytes, or whole rows.
    FASTNORM_FN void advance(std::int64_t count) {
        if (bytes != nullptr) bytes += run == 0 ? count / 8 : count / run * bytes_of(run);
    }

    // valid: of a pack, a constant if it is full.
    template <class Valid>
    FASTNORM_FN unsigned load(std::int64_t i, Valid valid) const {
        if (run != 0) return load_from_rows(i, valid);
        const unsigned char* const p = bytes + i / 8;
        if constexpr (is_full<Valid>) {
            Word<Valid> low;
            std::memcpy(&low, p, sizeof(low));
            if (shift == 0) return low;
            return static_cast<unsigned>((std::uint64_t{p[sizeof(low)]} << Valid::value | low) >>
                                         shift);
        } else {
            return static_cast<unsigned>(load_bits(p, valid + shift) >> shift);
        }
    }
    template <class Valid>
    FASTNORM_FN void store(std::int64_t i, unsigned bits, Valid valid, bool several) const {
        if (run != 0) return store_to_rows(i, bits, valid);
        unsigned char* const p = bytes + i / 8;
        const unsigned before = shift == 0 ? 0 : p[0] & ((1u << shift) - 1u);
        if constexpr (is_full<Valid>) {
            const std::uint64_t all = std::uint64_t{bits} << shift | before;
            const auto low = static_cast<Word<Valid>>(all);
            std::memcpy(p, &low, sizeof(low));
            if (shift == 0) return;
            // Where several rows are stored at a time the next one has begun in that byte.
            const unsigned rest = several ? p[sizeof(low)] & ~((1u << shift) - 1u) : 0;
            p[sizeof(low)] = static_cast<unsigned char>(rest | (all >> Valid::value));
        } else {
            const std::uint64_t own = bits & ((1u << valid) - 1u);
            store_bits(p, valid + shift, own << shift | before);
        }
    }

    // Whole bytes of up to 64 bits, one by one: of a size that is not constant memcpy is a call.
    static FASTNORM_FN std::uint64_t load_bits(const unsigned char* p, int count) {
        std::uint64_t bits = 0;
        for (int b = 0; 8 * b < count; ++b) bits |= std::uint64_t{p[b]} << (8 * b);
        return bits;
    }
    static FASTNORM_FN void store_bits(unsigned char* p, int count, std::uint64_t bits) {
        for (int b = 0; 8 * b < count; ++b) p[b] = static_cast<unsigned char>(bits >> (8 * b));
    }

  private:
    // The bits of a full pack.
    template <class Valid>
    using Word = std::conditional_t<Valid::value == 32, std::uint32_t, std::uint16_t>;

    static FASTNORM_FN std::int64_t bytes_of(std::int64_t bits) { return (bits + 7) / 8; }

    // Calls f(byte, shift, done, count) for what each row has of the pack at i: count of its bits,
    // after done others, from that bit of that byte on.
    template <class F>
    FASTNORM_FN void for_rows(std::int64_t i, int valid, F&& f) const {
        std::int64_t column = (first + i) % run;
        unsigned char* row = bytes + (first + i) / run * bytes_of(run);
        for (int done = 0; done < valid; column = 0, row += bytes_of(run)) {
            const std::int64_t rest = run - column;
            const int count = rest < valid - done ? static_cast<int>(rest) : valid - done;
            f(row + column / 8, static_cast<int>(column % 8), done, count);
            done += count;
        }
    }
    __attribute__((noinline)) unsigned load_from_rows(std::int64_t i, int valid) const {
        std::uint64_t bits = 0;
        for_rows(i, valid, [&](const unsigned char* p, int from, int done, int count) {
            const std::uint64_t found = load_bits(p, from + count);
            bits |= (found >> from & ((std::uint64_t{1} << count) - 1)) << done;
        });
        return static_cast<unsigned>(bits);
    }
    __attribute__((noinline)) void store_to_rows(std::int64_t i, unsigned bits, int valid) const {
        for_rows(i, valid, [&](unsigned char* p, int to, int done, int count) {
            const std::uint64_t own = bits >> done & ((std::uint64_t{1} << count) - 1);
            store_bits(p, to + count, own << to | (p[0] & ((1u << to) - 1u)));
        });
    }
};

// The row of the mask that belongs to a run, from element i of it on.
FASTNORM_FN MaskRow mask_at(const KernelArgs& args, std::int64_t run, std::int64_t i) {
    if (args.mask == nullptr) return {};
    const View& view = args.view;
    unsigned char* const row = args.mask + run * view.mask_row_bytes();
    if (view.mask_is_ragged()) return {row, 0, view.run(), i};
    return {row + i / 8, static_cast<int>(i % 8)};
}

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
