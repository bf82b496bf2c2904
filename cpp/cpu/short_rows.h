// Maps of short rows that lie side by side, such as those of 7x7 planes: walked as one row, by
// whole vectors from line to line. One by one they would be a few vectors each, the last of them
// partial, and all would go through the buffer. A vector has elements of two rows at most, and
// selects its coefficients from theirs. Compiled once per instruction set.
#pragma once

#include <initializer_list>

#include "cpu/rows_layout.h"
#include "cpu/stream.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// Whether a tile has several short rows, side by side in each of the operands.
template <class T>
FASTNORM_FN bool are_short_rows(const View& view, const Tile& tile,
                                std::initializer_list<const Operand*> operands) {
    if (!view.has_short_rows() || tile.stat1 - tile.stat0 == 1) return false;
    for (const Operand* operand : operands) {
        const bool dense = operand->stat_stride == view.inner * std::int64_t{sizeof(T)};
        if (*operand && !dense) return false;
    }
    return true;
}

// The first bits of a word, fewer than all.
FASTNORM_FN unsigned first_bits(std::int64_t count) { return (1u << count) - 1u; }

// A vector in the walk along short rows.
struct ShortRowsAt {
    std::int64_t i;     // its first element in the walk
    std::int64_t past;  // elements of the row before it
    std::int64_t left;  // and from it on; 0 where it begins with the next row
    int count;          // elements of the vector

    FASTNORM_FN bool crosses() const { return count > left; }
    // Of the bits of a vector that crosses, those in the row at hand.
    FASTNORM_FN unsigned own_bits() const { return first_bits(left); }
};

// The rows of a mask, a word each, in the order of the walk.
class ShortMask {
  public:
    // row: the first one, or null.
    FASTNORM_FN ShortMask(unsigned char* row, std::int64_t length)
        : row_(row), last_(static_cast<int>((length + 7) / 8) - 4) {}

    explicit FASTNORM_FN operator bool() const { return row_ != nullptr; }

    // Forward: the bits of a vector; end_row() follows the last one.
    FASTNORM_FN void put(const ShortRowsAt& at, unsigned bits) {
        bits &= first_bits(at.count);
        if (!at.crosses()) {
            word_ |= std::uint64_t{bits} << at.past;
            return;
        }
        if (at.left > 0) word_ |= std::uint64_t{bits & at.own_bits()} << at.past;
        end_row();
        word_ = bits >> at.left;
    }
    FASTNORM_FN void end_row() {
        const auto low = static_cast<std::uint32_t>(word_);
        const auto high = static_cast<std::uint32_t>(word_ >> (8 * last_));
        std::memcpy(row_, &low, sizeof(low));
        std::memcpy(row_ + last_, &high, sizeof(high));
        row_ += last_ + 4;
    }

    // Backward: begin_row() comes before the first vector.
    FASTNORM_FN void begin_row() {
        std::uint32_t low, high;
        std::memcpy(&low, row_, sizeof(low));
        std::memcpy(&high, row_ + last_, sizeof(high));
        word_ = std::uint64_t{high} << (8 * last_) | low;
        row_ += last_ + 4;
    }
    FASTNORM_FN unsigned take(const ShortRowsAt& at) {
        const unsigned own = at.left > 0 ? static_cast<unsigned>(word_ >> at.past) : 0u;
        if (!at.crosses()) return own;
        begin_row();
        return (own & at.own_bits()) | static_cast<unsigned>(word_ << at.left);
    }

  private:
    unsigned char* row_;
    int last_;  // where the last four bytes of a row begin: they may overlap the first four
    std::uint64_t word_ = 0;
};

// What the vectors of a row have in common.
template <class A>
struct ForwardMaps {
    using V = Vec<A>;
    NormalizeMap<V> z;

    FASTNORM_FN ForwardMaps(const KernelArgs& args, std::int64_t index)
        : z(normalize_map<A>(args, index)) {}

    // Of another row from the lanes on that are not in own.
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
                         const ShortRowsAt at{i, i - (end - length), end - i, width};
                         if (at.crosses()) {
                             maps.mix(V::mask(at.own_bits()), Maps(args, base + s + 1));
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
        const Ahead ahead_x = ahead_of_rows<T>(1, 0);
        const Ahead ahead_y = ahead_of_results(args.stream);
        for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
            const Forward<T, kind> forward =
                forward_at<T, kind>(args, tile.batch, o, tile.stat0, 0);
            T* const y = run_of<T>(args.view, args.y, tile.batch, o, tile.stat0);
            ShortMask mask(forward.mask.bytes, args.view.inner);
            T* to = nullptr;
            for_short_rows<ForwardMaps<A>>(
                args, tile, y, static_cast<const T*>(nullptr),
                [&](std::int64_t i, bool direct) { to = sink.open(y + i, direct); },
                [&](const ShortRowsAt& at, std::int64_t k, auto valid, bool direct,
                    const ForwardMaps<A>& maps) {
                    ahead_x.fetch_line(forward.x + at.i, k);
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

    static FASTNORM_FN void gradient(const KernelArgs& args, const Tile& tile) {
        Sink<T> dx_sink(args.stream);
        Sink<T> dresidual_sink(args.stream && args.dresidual);
        const Ahead ahead = ahead_of_results(args.stream);
        for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
            const Backward<T, kind> backward =
                backward_at<T, kind>(args, tile.batch, o, tile.stat0, 0);
            T* const dx = run_of<T>(args.view, args.dx, tile.batch, o, tile.stat0);
            T* const dresidual = run_of<T>(args.view, args.dresidual, tile.batch, o, tile.stat0);
            ShortMask mask(backward.mask.bytes, args.view.inner);
            if (mask) mask.begin_row();
            T *to = nullptr, *to_residual = nullptr;
            for_short_rows<BackwardMaps<A>>(
                args, tile, dx, dresidual,
                [&](std::int64_t i, bool direct) {
                    to = dx_sink.open(dx + i, direct);
                    if (dresidual != nullptr) {
                        to_residual = dresidual_sink.open(dresidual + i, direct);
                    }
                },
                [&](const ShortRowsAt& at, std::int64_t k, auto valid, bool direct,
                    const BackwardMaps<A>& maps) {
                    ahead.fetch_line_to_write(to + k, k);
                    const auto of =
                        backward.vector(at.i, 0, valid, maps.z, mask ? mask.take(at) : 0);
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
