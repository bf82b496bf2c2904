// The columns traversal: inner is 1 or short, vectors run along stat * inner, and each lane has its
// own accumulator and its own coefficients. Compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/columns_layout.h"
#include "cpu/spans.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class T, ActivationKind kind>
struct Columns {
    using A = accumulator_t<T>;
    using V = Vec<A>;
    using Layout = ColumnsLayout<T, kind>;
    using Lanes = typename Layout::Lanes;
    using Halves = typename Layout::Halves;

    static void moments(const KernelArgs& args, const Tile& tile, double* mean, double* m2) {
        Sums sums;
        alignas(64) A pivots[columns_tile_lanes];
        alignas(64) double means[columns_tile_lanes];
        alignas(64) double m2s[columns_tile_lanes];
        std::int64_t poor[columns_tile_lanes];  // lanes whose sums cannot be trusted
        const Halves halves(args, tile, Layout::lie_side_by_side(args, {&args.x}));
        guess_pivots(args, tile, halves, pivots);
        // Lanes of nothing: sums of zero about such a pivot can be trusted.
        for (std::int64_t j = halves.sampled().count; j < columns_tile_lanes; ++j) pivots[j] = A(1);
        add_deviations(args, tile, halves, pivots, sums);
        const std::int64_t poor_count = moments_of_lanes(halves, pivots, sums, means, m2s, poor);
        if (poor_count > 0) {
            recompute(args, tile, halves, poor, poor_count, pivots, sums, means, m2s);
        }
        const std::int64_t stats = tile.stat1 - tile.stat0;
        if (halves.one_lane_each(args.view)) {
            copy(means, mean, stats);
            copy(m2s, m2, stats);
            return;
        }
        for (std::int64_t s = 0; s < stats; ++s) {
            Moments m;
            Layout::for_lanes_of(args, halves, s, [&](std::int64_t j) {
                m = merge(m, {halves.rows_of(j), means[j], m2s[j]});
            });
            mean[s] = m.mean;
            m2[s] = m.m2;
        }
    }

    static void normalize(const KernelArgs& args, const Tile& tile) {
        Sink<T> sink(args.stream);
        const auto operands = {&args.x, &args.residual, &args.y};
        const auto write = [&](auto rows, const Lanes& at, std::int64_t o) {
            const T* x = Layout::row_of(args, args.x, tile, o);
            const T* residual = Layout::row_of(args, args.residual, tile, o);
            T* y = Layout::row_of(args, args.y, tile, o);
            const std::int64_t run = tile.batch * args.view.outer + o;
            for_segments<T>(args.stream, y, nullptr, at.first, at.first + at.count,
                            [&](std::int64_t i, std::int64_t count, bool direct) {
                                const Forward<T, kind> forward{
                                    x + i, residual == nullptr ? nullptr : residual + i,
                                    mask_at(args, run, i), activation_params<A>(args), args.stream};
                                forward.write(sink.open(y + i, direct), count, direct,
                                              maps_from(args, at, i), rows, at.count);
                                sink.close(count, direct);
                            });
        };
        Layout::for_map_rows(args, tile, operands, {&args.y}, Layout::wide_forward, write);
    }

    static void gradient_sums(const KernelArgs& args, const Tile& tile, double* sum_g,
                              double* sum_gx) {
        Sums sums;
        const bool together = Layout::lie_side_by_side(args, {&args.dy, &args.x, &args.residual});
        const Halves halves(args, tile, together);
        sums.clear(halves.wide);
        Layout::for_blocks(halves, [&](const Lanes& at, std::int64_t outer0, std::int64_t outer1) {
            Layout::for_several(at, outer0, outer1, [&](auto rows, std::int64_t o) {
                add_gradients<rows>(args, tile, at, o, sums);
            });
            sums.fold(at);
        });
        add_exactly(args, tile, halves, sums);
        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) {
            sum_g[s] = sum_gx[s] = 0.0;
            Layout::for_lanes_of(args, halves, s, [&](std::int64_t j) {
                sum_g[s] += sums.a(j);
                sum_gx[s] += sums.ab(j);
            });
        }
    }

    static void gradient(const KernelArgs& args, const Tile& tile) {
        Sink<T> dx_sink(args.stream);
        Sink<T> dresidual_sink(args.stream && args.dresidual);
        const auto operands = {&args.dy, &args.x, &args.residual, &args.dx, &args.dresidual};
        const auto write = [&](auto rows, const Lanes& at, std::int64_t o) {
            T* dx = Layout::row_of(args, args.dx, tile, o);
            T* dresidual = Layout::row_of(args, args.dresidual, tile, o);
            for_segments<T>(args.stream, dx, dresidual, at.first, at.first + at.count,
                            [&](std::int64_t i, std::int64_t count, bool direct) {
                                backward_at(args, tile, o, i)
                                    .write(dx_sink.open(dx + i, direct),
                                           dresidual == nullptr
                                               ? nullptr
                                               : dresidual_sink.open(dresidual + i, direct),
                                           count, direct, args.frozen, maps_from(args, at, i),
                                           gradient_maps_from(args, at, i), rows, at.count);
                                dx_sink.close(count, direct);
                                if (dresidual != nullptr) dresidual_sink.close(count, direct);
                            });
        };
        Layout::for_map_rows(args, tile, operands, {&args.dx, &args.dresidual},
                             Layout::wide_backward, write);
    }

  private:
    // The coefficients of the lanes from element i of a row on.
    static FASTNORM_FN auto coefficients_from(const KernelArgs& args, const Lanes& at,
                                              std::int64_t i) {
        return [&args, first = at.batch_offset + i](Coefficient which) {
            return coefficient<A>(args, which) + first;
        };
    }

    static FASTNORM_FN auto maps_from(const KernelArgs& args, const Lanes& at, std::int64_t i) {
        const auto from = coefficients_from(args, at, i);
        const A* const p = from(Coefficient::prescale);
        const A* const hi = from(Coefficient::mean_hi);
        const A* const lo = from(Coefficient::mean_lo);
        const A* const s = from(Coefficient::scale);
        const A* const b = from(Coefficient::bias);
        return [=](std::int64_t j, int v, auto valid) {
            return NormalizeMap<V>{load<A>(p + j, v, valid), load<A>(hi + j, v, valid),
                                   load<A>(lo + j, v, valid), load<A>(s + j, v, valid),
                                   load<A>(b + j, v, valid)};
        };
    }

    static FASTNORM_FN auto gradient_maps_from(const KernelArgs& args, const Lanes& at,
                                               std::int64_t i) {
        const auto from = coefficients_from(args, at, i);
        const A* const a = from(Coefficient::grad_a);
        const A* const b = from(Coefficient::grad_b);
        const A* const c = from(Coefficient::grad_c);
        const A* const s = from(Coefficient::grad_scale);
        return [=](std::int64_t j, int v, auto valid) {
            return GradientMap<V>{load<A>(a + j, v, valid), load<A>(b + j, v, valid),
                                  load<A>(c + j, v, valid), load<A>(s + j, v, valid)};
        };
    }

    static FASTNORM_FN Backward<T, kind> backward_at(const KernelArgs& args, const Tile& tile,
                                                     std::int64_t o, std::int64_t i) {
        const T* residual = Layout::row_of(args, args.residual, tile, o);
        const std::int64_t run = tile.batch * args.view.outer + o;
        return {Layout::row_of(args, args.dy, tile, o) + i,
                Layout::row_of(args, args.x, tile, o) + i,
                residual == nullptr ? nullptr : residual + i,
                mask_at(args, run, i),
                activation_params<A>(args),
                args.stream};
    }

    // The sums of a tile's lanes, a pack's at a time.
    struct Sums {
        LaneSums<A> packs[columns_tile_lanes / lanes<A>];

        FASTNORM_FN void clear(const Lanes& at) {
            for (std::int64_t p = 0; p * lanes<A> < at.count; ++p) packs[p].clear();
        }
        FASTNORM_FN void fold(const Lanes& at) {
            for (std::int64_t p = 0; p * lanes<A> < at.count; ++p) packs[p].fold();
        }
        FASTNORM_FN double& a(std::int64_t j) { return packs[j / lanes<A>].total_a[j % lanes<A>]; }
        FASTNORM_FN double& ab(std::int64_t j) {
            return packs[j / lanes<A>].total_ab[j % lanes<A>];
        }
    };

    // The sums of g and g * centred(x) of some rows.
    template <int rows>
    static FASTNORM_FN void add_gradients(const KernelArgs& args, const Tile& tile, const Lanes& at,
                                          std::int64_t o, Sums& sums) {
        Backward<T, kind> backward[rows];
        for (int r = 0; r < rows; ++r) {
            backward[r] = backward_at(args, tile, o + r * at.rows, at.first);
            backward[r].ahead_dy = Layout::template rows_ahead<rows>(args.view, args.dy, at, o);
            backward[r].ahead_x = Layout::template rows_ahead<rows>(args.view, args.x, at, o);
        }
        const auto maps = maps_from(args, at, at.first);
        for_packs<A>(at.count, [&](std::int64_t i, auto valid) {
            sums.packs[i / lanes<A>].template add_several<rows>(valid, [&](auto r, auto&& add) {
                backward[r].pack(i, valid, maps,
                                 [&](std::int64_t, auto v, auto, const Gradient<V>& of) {
                                     add(v, of.g, of.centred);
                                 });
            });
        });
    }

    // Off the hot path: lanes whose sums left the range of A, or that have an infinity or NaN. Once
    // more in double, from x itself: an x far from a mean that is not its own may have a centred(x)
    // beyond the range.
    static __attribute__((noinline)) void add_exactly(const KernelArgs& args, const Tile& tile,
                                                      const Halves& halves, Sums& sums) {
        std::int64_t chosen[columns_tile_lanes];
        std::int64_t count = 0;
        for (std::int64_t j = 0; j < halves.wide.count; ++j) {
            if (is_finite(sums.a(j)) && is_finite(sums.ab(j))) continue;
            sums.a(j) = sums.ab(j) = 0.0;
            chosen[count++] = j;
        }
        if (count == 0) return;
        alignas(64) A g[columns_tile_lanes];
        Layout::for_rows(halves, [&](const Lanes& at, std::int64_t o) {
            const T* const x = Layout::row_of(args, args.x, tile, o) + at.first;
            backward_at(args, tile, o, at.first)
                .each(at.count, maps_from(args, at, at.first),
                      [&](std::int64_t i, auto v, auto valid, const Gradient<V>& of) {
                          store<A>(g + i, v, of.g, valid);
                      });
            for (std::int64_t k = 0; k < count && chosen[k] < at.count; ++k) {
                const std::int64_t j = chosen[k];
                const ExactCentre<A> centre(args, at.batch_offset + at.first + j);
                sums.a(j) += static_cast<double>(g[j]);
                sums.ab(j) += centre.product(g[j], to_float(x[j]));
            }
        });
    }

    // The mean of some rows, spread over the tile; that of equal values is exact.
    static FASTNORM_FN void guess_pivots(const KernelArgs& args, const Tile& tile,
                                         const Halves& halves, A* pivots) {
        constexpr int samples = pivot_samples;
        const Lanes& at = halves.sampled();
        const bool any = halves.middle > halves.begin;
        const std::int64_t rows = ((any ? halves.middle : halves.end) - halves.begin) / at.rows;
        const T* x[samples];
        for (int k = 0; k < samples; ++k) {
            const std::int64_t o = halves.begin + k * rows / samples * at.rows;
            x[k] = Layout::row_of(args, args.x, tile, o) + at.first;
        }
        const V share(A(1) / static_cast<A>(samples));
        for_packs<A>(at.count, [&](std::int64_t i, auto valid) {
            for_vectors<A>([&](auto v) {
                const V first = load<A>(x[0] + i, v, valid);
                V sum, spread;
                for (int k = 1; k < samples; ++k) {
                    const V d = load<A>(x[k] + i, v, valid) - first;
                    sum = sum + d;
                    spread = spread + abs(d);
                }
                store<A>(pivots + i, v, pivot_near(first + sum * share, spread * share), valid);
            });
        });
    }

    // The sums of d = x - pivot and of d^2 over a tile.
    static FASTNORM_FN void add_deviations(const KernelArgs& args, const Tile& tile,
                                           const Halves& halves, const A* pivots, Sums& sums) {
        sums.clear(halves.wide);
        Layout::for_blocks(halves, [&](const Lanes& at, std::int64_t outer0, std::int64_t outer1) {
            Layout::for_several(at, outer0, outer1, [&](auto rows, std::int64_t o) {
                const T* x[rows];
                for (int r = 0; r < rows; ++r) {
                    x[r] = Layout::row_of(args, args.x, tile, o + r * at.rows) + at.first;
                }
                const Ahead ahead = Layout::template rows_ahead<rows>(args.view, args.x, at, o);
                for_packs<A>(at.count, [&](std::int64_t i, auto valid) {
                    sums.packs[i / lanes<A>].template add_several<rows>(valid, [&](auto r,
                                                                                   auto&& add) {
                        ahead.fetch<A>(x[r] + i);
                        for_vectors<A>([&](auto v) {
                            const V d = load<A>(x[r] + i, v, valid) - load<A>(pivots + i, v, valid);
                            add(v, d, d);
                        });
                    });
                });
            });
            sums.fold(at);
        });
    }

    static FASTNORM_FN void copy(const double* from, double* to, std::int64_t count) {
        std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(double));
    }

    // Eight at a time.
    static FASTNORM_FN bool all_of(const bool (&flags)[lanes<A>]) {
        std::uint64_t all = ~std::uint64_t{0};
        for (int i = 0; i < lanes<A>; i += 8) {
            std::uint64_t eight;
            std::memcpy(&eight, flags + i, sizeof(eight));
            all &= eight;
        }
        return all == 0x0101010101010101u;
    }

    // Those of all lanes; returns how many cannot be trusted, and which, in poor.
    static FASTNORM_FN std::int64_t moments_of_lanes(const Halves& halves, const A* pivots,
                                                     const Sums& sums, double* means, double* m2s,
                                                     std::int64_t* poor) {
        const std::int64_t longer =
            halves.narrow.count;  // lanes of the rows that are left over too
        const double rows[2] = {halves.rows_of(0), halves.rows_of(longer)};
        const double shares[2] = {1.0 / rows[0], 1.0 / rows[1]};
        std::int64_t count = 0;
        for (std::int64_t first = 0; first < halves.wide.count; first += lanes<A>) {
            const LaneSums<A>& of = sums.packs[first / lanes<A>];
            bool good[lanes<A>];
            for (int i = 0; i < lanes<A>; ++i) {
                const bool is_longer = first + i < longer;
                const double n = is_longer ? rows[0] : rows[1];
                const double share = is_longer ? shares[0] : shares[1];
                const double origin = static_cast<double>(pivots[first + i]);
                const Moments m = moments_about(origin, n, share, of.total_a[i], of.total_ab[i]);
                means[first + i] = m.mean;
                m2s[first + i] = m.m2;
                good[i] = trustworthy<A>(m, origin, of.total_a[i], of.total_ab[i]) | (n == 0);
            }
            if (all_of(good)) continue;
            const std::int64_t rest = halves.wide.count - first;
            for (int i = 0; i < lanes<A> && i < rest; ++i) {
                if (!good[i]) poor[count++] = first + i;
            }
        }
        return count;
    }

    // share: 1 / rows.
    static FASTNORM_FN Moments moments_of(Sums& sums, std::int64_t j, A pivot, double rows,
                                          double share, bool& good) {
        const double origin = static_cast<double>(pivot);
        const double sum = sums.a(j);
        const double square_sum = sums.ab(j);
        const Moments m = moments_about(origin, rows, share, sum, square_sum);
        good = trustworthy<A>(m, origin, sum, square_sum);
        return m;
    }

    // Off the hot path: lanes whose pivot was poor, or whose numbers are constant, tiny or huge.
    // Once more about their own means (all lanes: that is what vectors do), and in double where
    // that does not help.
    static __attribute__((noinline)) void recompute(const KernelArgs& args, const Tile& tile,
                                                    const Halves& halves, const std::int64_t* poor,
                                                    std::int64_t count, A* pivots, Sums& sums,
                                                    double* means, double* m2s) {
        for (std::int64_t p = 0; p < count; ++p) {
            const std::int64_t j = poor[p];
            pivots[j] = pivot_near(static_cast<A>(means[j]), A(0));
        }
        add_deviations(args, tile, halves, pivots, sums);
        alignas(64) A spread[columns_tile_lanes];
        largest_deviations(args, tile, halves, pivots, spread);
        for (std::int64_t p = 0; p < count; ++p) {
            const std::int64_t j = poor[p];
            const double rows = halves.rows_of(j);
            bool good;
            Moments m = moments_of(sums, j, pivots[j], rows, 1.0 / rows, good);
            if (!good && !(spread[j] == A(0) && sums.a(j) == 0.0)) {
                const auto value = [&](const Lanes& at, std::int64_t o) {
                    return to_float(Layout::row_of(args, args.x, tile, o)[at.first + j]);
                };
                const bool wide = halves.middle > halves.begin;
                const A first = value(wide ? halves.wide : halves.narrow, halves.begin);
                m = exact_moments(m.count, first, [&](auto&& use) {
                    Layout::for_rows(halves, [&](const Lanes& at, std::int64_t o) {
                        if (j < at.count) use(value(at, o));
                    });
                });
            }
            means[j] = m.mean;
            m2s[j] = m.m2;
        }
    }

    // The largest |x - pivot| of each lane, NaN left out: 0 where all values are the pivot.
    static FASTNORM_FN void largest_deviations(const KernelArgs& args, const Tile& tile,
                                               const Halves& halves, const A* pivots, A* largest) {
        for (std::int64_t j = 0; j < halves.wide.count; ++j) largest[j] = A(0);
        Layout::for_rows(halves, [&](const Lanes& at, std::int64_t o) {
            const T* const x = Layout::row_of(args, args.x, tile, o) + at.first;
            for_packs<A>(at.count, [&](std::int64_t i, auto valid) {
                for_vectors<A>([&](auto v) {
                    const V d = abs(load<A>(x + i, v, valid) - load<A>(pivots + i, v, valid));
                    const V most = load<A>(largest + i, v, valid);
                    store<A>(largest + i, v, select(d > most, d, most), valid);
                });
            });
        });
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
