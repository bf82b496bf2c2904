// The rows traversal: inner is long and contiguous, vectors run along it, and one statistic's
// coefficients serve a whole row. Rows of neighbouring statistics lie side by side, so a tile holds
// a group of them and keeps their accumulators in L1. Compiled once per instruction set.
#pragma once

#include "cpu/short_rows.h"
#include "cpu/single_rows.h"
#include "cpu/stream.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// A map of rows whose coefficients come from Maps, with a reduction interleaved or not.
template <class T, ActivationKind kind, template <class> class Maps>
struct RowsMap {
    using A = accumulator_t<T>;

    template <class Reduction>
    static FASTNORM_FN void normalize(const KernelArgs& args, const Tile& tile,
                                      Reduction reduction) {
        const View& view = args.view;
        Sink<T> sink(args.stream);
        for_rows(tile, [&](std::int64_t o, std::int64_t s) {
            const Maps<A> maps(args, tile.batch * view.stat + s);
            const std::int64_t run = run_index(view, tile.batch, o, s);
            const T* x = run_of<T>(view, args.x, tile.batch, o, s);
            const T* residual = run_of<T>(view, args.residual, tile.batch, o, s);
            T* y = run_of<T>(view, args.y, tile.batch, o, s);
            if (s == tile.stat0) expect_next_rows(args, args.y, tile, o, sink);
            reduction.begin_row();
            for_segments<T, Reduction::longest>(
                args.stream, y, nullptr, tile.inner0, tile.inner1,
                [&](std::int64_t i, std::int64_t count, bool direct) {
                    reduction.advance_to(o, s, i + count);
                    const Forward<T, kind> forward{x + i,
                                                   residual == nullptr ? nullptr : residual + i,
                                                   mask_at(args, run, i),
                                                   activation_params<A>(args),
                                                   args.stream,
                                                   reduction.ahead_x};
                    forward.write(sink.open(y + i, direct), count, direct, maps.z_from(i));
                    sink.close(count, direct);
                });
        });
    }

    // What a map will write at the outer index that follows o: rows side by side.
    static FASTNORM_FN void expect_next_rows(const KernelArgs& args, const Operand& operand,
                                             const Tile& tile, std::int64_t o,
                                             const Sink<T>& sink) {
        const View& view = args.view;
        if (o + 1 == view.outer) return;
        sink.expect(run_of<T>(view, operand, tile.batch, o + 1, tile.stat0) + tile.inner0,
                    run_of<T>(view, operand, tile.batch, o + 1, tile.stat1 - 1) + tile.inner1);
    }
};

template <class T, ActivationKind kind>
struct Rows {
    using A = accumulator_t<T>;
    using V = Vec<A>;
    using RowMap = RowsMap<T, kind, StatMaps>;
    using Sums = GradientSums<T, kind, StatMaps>;

    static FASTNORM_FLAT void moments(const KernelArgs& args, const Tile& tile, double* mean,
                                      double* m2) {
        moments_of_rows<T>(args, tile, mean, m2);
    }

    static void normalize(const KernelArgs& args, const Tile& tile) {
        if (TinyRows<T>::are_plain(args)) {
            return TinyRows<T>::template normalize<kind>(
                args, tile, [](const NormalizeMap<V>& z, std::int64_t, V centred) {
                    return z.affine(centred);
                });
        }
        if (are_short_rows<T, kind>(args.view, tile, {&args.x, &args.residual, &args.y})) {
            return ShortRows<T, kind>::normalize(args, tile);
        }
        RowMap::normalize(args, tile, MapOnly());
    }

    static FASTNORM_FLAT void normalize_and_moments(const KernelArgs& args, const Tile& mapped,
                                                    const Tile& reduced, double* mean, double* m2) {
        Deviations<T> deviations(args, reduced);
        RowMap::normalize(args, mapped,
                          Interleaved<T, Deviations<T>>(args.view, mapped, reduced, deviations));
        deviations.finish(mean, m2);
    }

    static FASTNORM_FLAT void gradient_sums(const KernelArgs& args, const Tile& tile, double* sum_g,
                                            double* sum_gx) {
        gradient_sums_of_rows<T, kind, StatMaps>(args, tile, sum_g, sum_gx);
    }

    // D: the type of dy.
    template <class D = T>
    static void gradient(const KernelArgs& args, const Tile& tile) {
        const Operand none;
        const bool recomputed = kind != ActivationKind::identity && args.mask == nullptr;
        const Operand& residual = recomputed ? args.residual : none;
        if (are_short_rows<T, kind>(
                args.view, tile,
                {&args.x, {&args.dy, sizeof(D)}, &residual, &args.dx, &args.dresidual})) {
            return ShortRows<T, kind>::template gradient<D>(args, tile);
        }
        gradient_with<D>(args, tile, MapOnly());
    }

    static FASTNORM_FLAT void gradient_and_sums(const KernelArgs& args, const Tile& mapped,
                                                const Tile& reduced, double* sum_g,
                                                double* sum_gx) {
        Sums sums(args, reduced);
        gradient_with<T>(args, mapped, Interleaved<T, Sums>(args.view, mapped, reduced, sums));
        sums.finish(sum_g, sum_gx);
    }

  private:
    template <class D, class Reduction>
    static FASTNORM_FN void gradient_with(const KernelArgs& args, const Tile& tile,
                                          Reduction reduction) {
        const View& view = args.view;
        Sink<T> dx_sink(args.stream);
        Sink<T> dresidual_sink(args.stream && args.dresidual);
        for_rows(tile, [&](std::int64_t o, std::int64_t s) {
            const std::int64_t index = tile.batch * view.stat + s;
            const NormalizeMap<V> map = normalize_map<A>(args, index);
            const GradientMap<V> dx_map = gradient_map<A>(args, index);
            T* dx = run_of<T>(view, args.dx, tile.batch, o, s);
            T* dresidual = run_of<T>(view, args.dresidual, tile.batch, o, s);
            if (s == tile.stat0) RowMap::expect_next_rows(args, args.dx, tile, o, dx_sink);
            reduction.begin_row();
            for_segments<T, Reduction::longest>(
                args.stream, dx, dresidual, tile.inner0, tile.inner1,
                [&](std::int64_t i, std::int64_t count, bool direct) {
                    reduction.advance_to(o, s, i + count);
                    backward_at<T, kind, D>(args, tile.batch, o, s, i)
                        .write(
                            dx_sink.open(dx + i, direct),
                            dresidual == nullptr ? nullptr
                                                 : dresidual_sink.open(dresidual + i, direct),
                            count, direct, args.frozen, [&](auto...) -> const auto& { return map; },
                            [&](auto...) -> const auto& { return dx_map; });
                    dx_sink.close(count, direct);
                    if (dresidual != nullptr) dresidual_sink.close(count, direct);
                });
        });
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
