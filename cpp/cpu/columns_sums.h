// The reductions of the columns traversal: each lane has its own sums and its own pivot. Compiled
// once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/columns_layout.h"
#include "cpu/lane_sums.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class T, ActivationKind kind>
struct ColumnsSums {
    using A = accumulator_t<T>;
    using V = Vec<A>;
    using Layout = ColumnsLayout<T, kind>;
    using Lanes = typename Layout::Lanes;
    using Halves = typename Layout::Halves;

    static FASTNORM_FLAT void moments(const KernelArgs& args, const Tile& tile, double* mean,
                                      double* m2) {
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

    static FASTNORM_FLAT void gradient_sums(const KernelArgs& args, const Tile& tile, double* sum_g,
                                            double* sum_gx) {
        Sums sums;
        const Operand none;
        const Operand& residual = kind == ActivationKind::identity ? none : args.residual;
        const bool together = Layout::lie_side_by_side(args, {&args.dy, &args.x, &residual});
        const Halves halves(args, tile, together);
        add_gradients(args, tile, halves, sums);
        add_exactly(args, tile, halves, sums);
        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) {
            sum_g[s] = sum_gx[s] = 0.0;
            Layout::for_lanes_of(args, halves, s, [&](std::int64_t j) {
                sum_g[s] += sums.a(j);
                sum_gx[s] += sums.ab(j);
            });
        }
    }

  private:
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

    // The sums of g and of g * centred(x) over a tile.
    static FASTNORM_FN void add_gradients(const KernelArgs& args, const Tile& tile,
                                          const Halves& halves, Sums& sums) {
        // Of two tensors, or three, several rows are too many streams from memory. Parts of rows
        // are read in jumps anyway, and in the cache fewer loads and stores of the sums are worth
        // more.
        const bool in_order = args.from_memory && Layout::whole_rows(args.view, halves);
        sums.clear(halves.wide);
        Layout::for_blocks(halves, [&](const Lanes& at, std::int64_t outer0, std::int64_t outer1) {
            const auto maps = Layout::maps_from(args, at);
            const std::int64_t pitch = Layout::pitch(args.view, at);
            const auto add_rows = [&](auto rows, std::int64_t o, std::int64_t times) {
                Backward<T, kind> backward = Layout::backward_at(args, tile, at, o);
                backward.ahead_dy = Layout::ahead_of(args, args.dy, halves, at, rows, o);
                backward.ahead_x = Layout::ahead_of(args, args.x, halves, at, rows, o);
                for (; times > 0; --times, backward.advance(rows * pitch)) {
                    for_packs<A>(at.count, [&](std::int64_t i, auto valid) FASTNORM_INLINED {
                        const auto each_vector = [&](int r, auto&& use) FASTNORM_INLINED {
                            const std::int64_t k = r * pitch + i;
                            backward.pack(
                                k, valid, backward.begin_pack(k, valid),
                                [&](auto v) FASTNORM_INLINED { return maps(i, v, valid); }, use);
                        };
                        LaneSums<A>& own = sums.packs[i / lanes<A>];
                        if constexpr (is_smooth(kind)) {
                            add_by_way_of_memory<rows>(own, valid, each_vector);
                        } else {
                            own.add([&](auto&& add) FASTNORM_INLINED {
                                unrolled<rows>([&](auto r) FASTNORM_INLINED {
                                    each_vector(
                                        r, [&](auto v, const Gradient<V>& of) FASTNORM_INLINED {
                                            add(v, valid, of.g, of.centred);
                                        });
                                });
                            });
                        }
                    });
                }
            };
            Layout::for_several(in_order, halves, at, outer0, outer1, add_rows);
            sums.fold(at);
        });
    }

    // A slope takes all registers: sums that wait for it there would be moved out of its way.
    template <int rows, class Valid, class EachVector>
    static FASTNORM_FN void add_by_way_of_memory(LaneSums<A>& sums, Valid valid,
                                                 EachVector&& each_vector) {
        alignas(64) A g[rows][lanes<A>], centred[rows][lanes<A>];
        for (int r = 0; r < rows; ++r) {
            each_vector(r, [&](auto v, const Gradient<V>& of) FASTNORM_INLINED {
                of.g.store(g[r] + v * V::width);
                of.centred.store(centred[r] + v * V::width);
            });
        }
        sums.add([&](auto&& add) FASTNORM_INLINED {
            for (int r = 0; r < rows; ++r) {
                for_vectors<A>([&](auto v) FASTNORM_INLINED {
                    add(v, valid, V::load(g[r] + v * V::width), V::load(centred[r] + v * V::width));
                });
            }
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
            Layout::backward_at(args, tile, at, o)
                .each(at.count, Layout::maps_from(args, at),
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
            const std::int64_t pitch = Layout::pitch(args.view, at);
            const auto add_rows = [&](auto rows, std::int64_t o, std::int64_t times) {
                const Ahead ahead = Layout::ahead_of(args, args.x, halves, at, rows, o);
                const T* x = Layout::row_of(args, args.x, tile, o) + at.first;
                for (; times > 0; --times, x += rows * pitch) {
                    for_packs<A>(at.count, [&](std::int64_t i, auto valid) {
                        sums.packs[i / lanes<A>].add([&](auto&& add) {
                            unrolled<rows>([&](auto r) {
                                const T* const row = x + r * pitch + i;
                                ahead.fetch<A>(row);
                                for_vectors<A>([&](auto v) {
                                    const V pivot = load<A>(pivots + i, v, valid);
                                    const V d = load<A>(row, v, valid) - pivot;
                                    add(v, valid, d, d);
                                });
                            });
                        });
                    });
                }
            };
            Layout::for_several(false, halves, at, outer0, outer1, add_rows);
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
                const Moments m =
                    moments_about(origin, n, of.total_a[i] * share, of.total_a[i], of.total_ab[i]);
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
        const Moments m = moments_about(origin, rows, sum * share, sum, square_sum);
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
