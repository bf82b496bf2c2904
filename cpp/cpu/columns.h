// The columns traversal: inner is 1 or short, vectors run along stat * inner, and each lane has its
// own accumulator and its own coefficients. Compiled once per instruction set.
#pragma once

#include <cstdint>

#include "cpu/columns_sums.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class T, ActivationKind kind>
struct Columns {
    using A = accumulator_t<T>;
    using Layout = ColumnsLayout<T, kind>;
    using Lanes = typename Layout::Lanes;

    // Rows that a map takes at a time where it writes past the cache: as many as read and write no
    // more streams of memory than the machine can follow.
    using ForwardRows = RowCount<4>;
    using BackwardRows = RowCount<2>;

    static constexpr Reduction moments = &ColumnsSums<T, kind>::moments;
    static constexpr Reduction gradient_sums = &ColumnsSums<T, kind>::gradient_sums;

    static void normalize(const KernelArgs& args, const Tile& tile) {
        Sink<T> sink(args.stream);
        const auto write = [&](auto rows, const Lanes& at, std::int64_t o, std::int64_t times,
                               auto direct) {
            const T* residual = Layout::row_of(args, args.residual, tile, o);
            Forward<T, kind> forward{Layout::row_of(args, args.x, tile, o) + at.first,
                                     residual == nullptr ? nullptr : residual + at.first,
                                     mask_at(args, Layout::run_index(args, tile, o), at.first),
                                     activation_params<A>(args), args.stream};
            T* y = Layout::row_of(args, args.y, tile, o) + at.first;
            const auto maps = Layout::maps_from(args, at);
            const std::int64_t step = rows * at.count;
            for (; times > 0; --times, y += step, forward.advance(step)) {
                forward.write(sink.open(y, direct), at.count, direct, maps, rows, at.count);
                sink.close(at.count, direct);
            }
        };
        Layout::for_map_pieces(args, tile, {&args.x, &args.residual, &args.y}, {&args.y},
                               ForwardRows(), write);
    }

    // D: the type of dy.
    template <class D = T>
    static void gradient(const KernelArgs& args, const Tile& tile) {
        Sink<T> dx_sink(args.stream);
        Sink<T> dresidual_sink(args.stream && args.dresidual);
        const auto write = [&](auto rows, const Lanes& at, std::int64_t o, std::int64_t times,
                               auto direct) {
            auto backward = Layout::template backward_at<D>(args, tile, at, o);
            T* dx = Layout::row_of(args, args.dx, tile, o) + at.first;
            T* dresidual = Layout::row_of(args, args.dresidual, tile, o);
            if (dresidual != nullptr) dresidual += at.first;
            const auto maps = Layout::maps_from(args, at);
            const auto gradient_maps = Layout::gradient_maps_from(args, at);
            const std::int64_t step = rows * at.count;
            backward.ahead_dy = ahead_of_rows<D>(rows, at.count);
            backward.ahead_x = ahead_of_rows<T>(rows, at.count);
            for (; times > 0; --times, dx += step, backward.advance(step)) {
                T* const second =
                    dresidual == nullptr ? nullptr : dresidual_sink.open(dresidual, direct);
                backward.write(dx_sink.open(dx, direct), second, at.count, direct, args.frozen,
                               maps, gradient_maps, rows, at.count);
                dx_sink.close(at.count, direct);
                if (dresidual == nullptr) continue;
                dresidual_sink.close(at.count, direct);
                dresidual += step;
            }
        };
        Layout::for_map_pieces(
            args, tile, {{&args.dy, sizeof(D)}, &args.x, &args.residual, &args.dx, &args.dresidual},
            {&args.dx, &args.dresidual}, BackwardRows(), write);
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
