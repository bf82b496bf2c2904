// Maps of short rows that lie side by side, such as those of 7x7 planes: walked as one row, by
// whole vectors from line to line. One by one they would be a few vectors each, the last of them
// partial, and all would go through the buffer. A vector has elements of two rows at most, and
// selects its coefficients from theirs. Compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "cpu/rows_layout.h"
#include "cpu/stream.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// A row is longer than any vector, so that none has elements of three. From the upper length on the
// packs of whole rows are faster than vector after vector: measured.
constexpr std::int64_t shortest_short_row = 32;
constexpr std::int64_t longest_short_row = 1024;
// Smooth activations are taken of packs, all of whose chains of operations overlap.
constexpr std::int64_t longest_smooth_short_row = 256;
static_assert(Vec<float>::width <= shortest_short_row);

// Whether a tile has several short rows, whole ones, side by side in each of the operands.
template <class T, ActivationKind kind>
FASTNORM_FN bool are_short_rows(const View& view, const Tile& tile,
                                std::initializer_list<Sized<T>> operands) {
    constexpr std::int64_t longest = is_smooth(kind) ? longest_smooth_short_row : longest_short_row;
    if (view.inner < shortest_short_row || view.inner > longest) return false;
    if (tile.stat1 - tile.stat0 == 1 || tile.inner1 - tile.inner0 != view.inner) return false;
    for (const auto& [operand, bytes] : operands) {
        if (*operand && operand->stat_stride != view.inner * bytes) return false;
    }
    return true;
}

// The first bits of a word, fewer than all.
FASTNORM_FN unsigned first_bits(int count) { return (1u << count) - 1u; }

// Where a vector begins, as elements of the walk, and which of its elements are in which row.
struct VectorAt {
    std::int64_t i;
    std::int64_t left;  // elements of the row at hand from there on; it may be none
    int count;          // elements of the vector

    FASTNORM_FN bool crosses() const { return count > left; }
    // How many of them are in the row at hand; the others are in the next one.
    FASTNORM_FN int own() const { return crosses() ? static_cast<int>(left) : count; }
};

// Writes the mask in the order of the walk; each row begins with a byte.
class ShortRowsMaskWriter {
  public:
    // row: the walk's first one, or null.
    FASTNORM_FN ShortRowsMaskWriter(unsigned char* row, const View& view)
        : next_(row), row_(row), row_bytes_(view.mask_row_bytes()) {}

    explicit FASTNORM_FN operator bool() const { return row_ != nullptr; }

    // end_row() has to follow the last vector.
    FASTNORM_FN void put(const VectorAt& at, unsigned bits) {
        const int own = at.own();
        append(bits & first_bits(own), own);
        if (!at.crosses()) return;
        end_row();
        append((bits & first_bits(at.count)) >> own, at.count - own);
    }
    FASTNORM_FN void end_row() {
        MaskRow::store_bits(next_, held_, word_);
        next_ = row_ += row_bytes_;
        word_ = 0;
        held_ = 0;
    }

  private:
    FASTNORM_FN void append(unsigned bits, int count) {
        word_ |= std::uint64_t{bits} << held_;
        held_ += count;
        if (held_ < 32) return;
        const auto low = static_cast<std::uint32_t>(word_);
        std::memcpy(next_, &low, sizeof(low));
        next_ += sizeof(low);
        word_ >>= 32;
        held_ -= 32;
    }

    unsigned char* next_;  // where the bits go that are held
    unsigned char* row_;
    std::int64_t row_bytes_;
    std::uint64_t word_ = 0;
    int held_ = 0;  // bits of it
};

class ShortRowsMaskReader {
  public:
    // row: the first one of a walk along so many rows, or null.
    FASTNORM_FN ShortRowsMaskReader(const unsigned char* row, std::int64_t rows, const View& view)
        : row_(row), length_(view.inner), row_bytes_(view.mask_row_bytes()) {
        if (row != nullptr) last_word_ = row + rows * row_bytes_ - sizeof(std::uint64_t);
    }

    explicit FASTNORM_FN operator bool() const { return row_ != nullptr; }

    FASTNORM_FN unsigned take(const VectorAt& at) {
        const int own = at.own();
        const unsigned bits = load(length_ - at.left) & first_bits(own);
        if (!at.crosses()) return bits;
        row_ += row_bytes_;
        return bits | (load(0) & first_bits(at.count - own)) << own;
    }

  private:
    // From element i of the row on. No byte behind the last row is read: two rows have a word.
    FASTNORM_FN unsigned load(std::int64_t i) const {
        const unsigned char* const byte = row_ + i / 8;
        const unsigned char* const from = byte < last_word_ ? byte : last_word_;
        std::uint64_t word;
        std::memcpy(&word, from, sizeof(word));
        return static_cast<unsigned>(word >> (8 * (byte - from) + i % 8));
    }

    const unsigned char* row_;
    const unsigned char* last_word_ = nullptr;
    std::int64_t length_;
    std::int64_t row_bytes_;
};

template <class A>
struct ForwardMaps {
    using V = Vec<A>;
    NormalizeMap<V> z;

    FASTNORM_FN ForwardMaps(const KernelArgs& args, std::int64_t index)
        : z(normalize_map<A>(args, index)) {}

    // Lanes that are not in own take next's.
    FASTNORM_FN void mix(typename V::Mask own, const ForwardMaps& next) {
        z = {select(own, z.prescale, next.z.prescale), select(own, z.mean_hi, next.z.mean_hi),
             select(own, z.mean_lo, next.z.mean_lo), select(own, z.scale, next.z.scale),
             select(own, z.bias, next.z.bias)};
    }
};

template <class A>
struct BackwardMaps : ForwardMaps<A> {
    using V = Vec<A>;
    GradientMap<V> dx;

    FASTNORM_FN BackwardMaps(const KernelArgs& args, std::int64_t index)
        : ForwardMaps<A>(args, index), dx(gradient_map<A>(args, index)) {}

    FASTNORM_FN void mix(typename V::Mask own, const BackwardMaps& next) {
        ForwardMaps<A>::mix(own, next);
        dx = {select(own, dx.a, next.dx.a), select(own, dx.b, next.dx.b),
              select(own, dx.c, next.dx.c), select(own, dx.scale, next.dx.scale)};
    }
};

// Walks a tile's rows at one outer index, in the segments of their results: open(i, direct), then
// vector(at, k, valid, direct, maps) for each vector, k elements behind i, then
// close(count, direct).
template <class Maps, class T, class Open, class Vector, class Close>
FASTNORM_FN void for_short_rows(const KernelArgs& args, const Tile& tile, const T* result,
                                const T* second, Open&& open, Vector&& vector, Close&& close) {
    using V = Vec<accumulator_t<T>>;
    const std::int64_t length = args.view.inner;
    const std::int64_t base = tile.batch * args.view.stat;
    std::int64_t s = tile.stat0, end = length;  // of the row at hand
    Maps maps(args, base + s);
    for_segments(args.stream, result, second, 0, (tile.stat1 - tile.stat0) * length,
                 [&](std::int64_t from, std::int64_t count, bool direct) {
                     open(from, direct);
                     const auto each = [&](std::int64_t k, int width, auto valid) {
                         const std::int64_t i = from + k;
                         const VectorAt at{i, end - i, width};
                         if (at.crosses()) {
                             maps.mix(V::mask(first_bits(at.own())), Maps(args, base + s + 1));
                         }
                         vector(at, k, valid, direct, maps);
                         if (at.crosses()) {
                             ++s;
                             end += length;
                             maps = Maps(args, base + s);
                         }
                     };
                     std::int64_t k = 0;
                     for (; k + V::width <= count; k += V::width) {
                         each(k, V::width,
                              std::integral_constant<int, lanes<typename V::Scalar>>{});
                     }
                     const int rest = static_cast<int>(count - k);
                     if (rest > 0) each(k, rest, rest);
                     close(count, direct);
                 });
}

template <class T, ActivationKind kind>
struct ShortRows {
    using A = accumulator_t<T>;

    static FASTNORM_FN void normalize(const KernelArgs& args, const Tile& tile) {
        Sink<T> sink(args.stream);
        const Ahead ahead_y = ahead_of_results(args.stream);
        for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
            const View& view = args.view;
            const auto run = [&](const Operand& operand) {
                return run_of<T>(view, operand, tile.batch, o, tile.stat0);
            };
            const Forward<T, kind> forward{
                run(args.x), run(args.residual),
                mask_at(args, run_index(view, tile.batch, o, tile.stat0), 0),
                activation_params<A>(args), args.stream};
            T* const y = run(args.y);
            ShortRowsMaskWriter mask(forward.mask.bytes, view);
            T* to = nullptr;
            for_short_rows<ForwardMaps<A>>(
                args, tile, y, static_cast<const T*>(nullptr),
                [&](std::int64_t i, bool direct) { to = sink.open(y + i, direct); },
                [&](const VectorAt& at, std::int64_t k, auto valid, bool direct,
                    const ForwardMaps<A>& maps) {
                    forward.ahead_x.fetch_line(forward.x + at.i, k);
                    ahead_y.fetch_line_to_write(to + k, k);
                    const auto z = forward.z(at.i, 0, valid, maps.z);
                    if constexpr (Act<kind>::piecewise) {
                        if (mask) mask.put(at, bits(Act<kind>::is_unit(z, forward.params)));
                    }
                    store<A>(to + k, 0, Act<kind>::value(z, forward.params), valid, direct);
                },
                [&](std::int64_t count, bool direct) { sink.close(count, direct); });
            if (mask) mask.end_row();
        }
    }

    template <class D>
    static FASTNORM_FN void gradient(const KernelArgs& args, const Tile& tile) {
        Sink<T> dx_sink(args.stream);
        Sink<T> dresidual_sink(args.stream && args.dresidual);
        const Ahead ahead = ahead_of_results(args.stream);
        for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
            const Backward<T, kind, D> backward =
                backward_at<T, kind, D>(args, tile.batch, o, tile.stat0, 0);
            T* const dx = run_of<T>(args.view, args.dx, tile.batch, o, tile.stat0);
            T* const dresidual = run_of<T>(args.view, args.dresidual, tile.batch, o, tile.stat0);
            ShortRowsMaskReader mask(backward.mask.bytes, tile.stat1 - tile.stat0, args.view);
            T *to = nullptr, *to_residual = nullptr;
            for_short_rows<BackwardMaps<A>>(
                args, tile, dx, dresidual,
                [&](std::int64_t i, bool direct) {
                    to = dx_sink.open(dx + i, direct);
                    if (dresidual != nullptr) {
                        to_residual = dresidual_sink.open(dresidual + i, direct);
                    }
                },
                [&](const VectorAt& at, std::int64_t k, auto valid, bool direct,
                    const BackwardMaps<A>& maps) {
                    ahead.fetch_line_to_write(to + k, k);
                    unsigned unit_bits = 0;
                    if constexpr (Act<kind>::piecewise) {
                        if (mask) unit_bits = mask.take(at);
                    }
                    const auto of = backward.vector(at.i, 0, valid, maps.z, unit_bits);
                    store<A>(to + k, 0, of.dx(maps.dx, args.frozen), valid, direct);
                    if (dresidual == nullptr) return;
                    ahead.fetch_line_to_write(to_residual + k, k);
                    store<A>(to_residual + k, 0, of.g, valid, direct);
                },
                [&](std::int64_t count, bool direct) {
                    dx_sink.close(count, direct);
                    if (dresidual != nullptr) dresidual_sink.close(count, direct);
                });
        }
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
