// The rows traversal: inner is long and contiguous, vectors run along it, and one statistic's
// coefficients serve a whole row. Rows of neighbouring statistics lie side by side, so a tile holds
// a group of them and keeps their accumulators in L1. Compiled once per instruction set.
#pragma once

#include "cpu/spans.h"
#include "cpu/stream.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// Calls f with each block of a tile: at most rows_block values per statistic, whole rows where they
// are shorter than that. The blocks follow from the tile alone.
template <class A, class F>
FASTNORM_FN void for_row_blocks(const Tile& tile, F&& f) {
    Tile block = tile;
    const std::int64_t row = tile.inner1 - tile.inner0;
    if (row <= rows_block) {
        const std::int64_t rows = rows_block / row;
        for (std::int64_t o = tile.outer0; o < tile.outer1; o += rows) {
            block.outer0 = o;
            block.outer1 = o + rows < tile.outer1 ? o + rows : tile.outer1;
            f(block);
        }
        return;
    }
    const std::int64_t pieces = (row + rows_block - 1) / rows_block;
    const std::int64_t share = (row + pieces - 1) / pieces;
    const std::int64_t piece = (share + lanes<A> - 1) / lanes<A> * lanes<A>;
    for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
        block.outer0 = o;
        block.outer1 = o + 1;
        for (std::int64_t i = tile.inner0; i < tile.inner1; i += piece) {
            block.inner0 = i;
            block.inner1 = i + piece < tile.inner1 ? i + piece : tile.inner1;
            f(block);
        }
    }
}

// Rows are short, and hardware begins to fetch anew with each: a reduction fetches so far ahead.
constexpr std::int64_t fetch_bytes = 4096;

template <class T, ActivationKind kind>
struct Rows {
    using A = accumulator_t<T>;
    using V = Vec<A>;
    using Sums = LaneSums<A>;

    static void moments(const KernelArgs& args, const Tile& tile, double* mean, double* m2) {
        Sums sums[rows_tile_stats];
        A pivots[rows_tile_stats];
        const std::int64_t stats = tile.stat1 - tile.stat0;
        guess_pivots(args, tile, pivots);
        add_deviations(args, tile, pivots, sums);
        for (std::int64_t s = 0; s < stats; ++s) {
            bool good;
            Moments m = moments_of(sums[s], pivots[s], count_of(tile), good);
            if (!good) m = recompute(args, tile, tile.stat0 + s, m.mean);
            mean[s] = m.mean;
            m2[s] = m.m2;
        }
    }

    static void normalize(const KernelArgs& args, const Tile& tile) {
        Sink<T> sink(args.stream);
        const View& view = args.view;
        for_rows(args, tile, [&](std::int64_t o, std::int64_t s, std::int64_t run) {
            const NormalizeMap<V> map = normalize_map(args, tile.batch * view.stat + s);
            const T* x = run_of<T>(view, args.x, tile.batch, o, s);
            const T* residual = run_of<T>(view, args.residual, tile.batch, o, s);
            T* y = run_of<T>(view, args.y, tile.batch, o, s);
            if (s == tile.stat0) expect_next_rows(args, args.y, tile, o, sink);
            for_segments<T>(args.stream, y, nullptr, tile.inner0, tile.inner1,
                            [&](std::int64_t i, std::int64_t count, bool direct) {
                                const Forward<T, kind> forward{
                                    x + i, residual == nullptr ? nullptr : residual + i,
                                    mask_at(args, run, i), activation_params<A>(args), args.stream};
                                forward.write(sink.open(y + i, direct), count, direct,
                                              [&](auto...) -> const auto& { return map; });
                                sink.close(count, direct);
                            });
        });
    }

    static void gradient_sums(const KernelArgs& args, const Tile& tile, double* sum_g,
                              double* sum_gx) {
        Sums sums[rows_tile_stats];
        const View& view = args.view;
        const std::int64_t stats = tile.stat1 - tile.stat0;
        for (std::int64_t s = 0; s < stats; ++s) sums[s].clear();

        for_row_blocks<A>(tile, [&](const Tile& block) {
            for_pieces(
                view, block,
                [&](std::int64_t o, std::int64_t from, std::int64_t to, const Walk& walk) {
                    const Ahead ahead_dy = walk.in(args.dy), ahead_x = walk.in(args.x);
                    for (std::int64_t s = tile.stat0; s < tile.stat1; ++s) {
                        const NormalizeMap<V> map = normalize_map(args, tile.batch * view.stat + s);
                        Backward<T, kind> backward =
                            backward_at(args, tile, o, s, run_index(view, tile.batch, o, s), from);
                        backward.ahead_dy = ahead_dy;
                        backward.ahead_x = ahead_x;
                        sums[s - tile.stat0].add([&](auto&& add) {
                            backward.each(
                                to - from, [&](auto...) -> const auto& { return map; },
                                [&](std::int64_t, auto v, auto valid, const Gradient<V>& at) {
                                    add(v, valid, at.g, at.centred);
                                });
                        });
                    }
                });
            for (std::int64_t s = 0; s < stats; ++s) sums[s].fold();
        });
        for (std::int64_t s = 0; s < stats; ++s) {
            sum_g[s] = sum_of_lanes<A>(sums[s].total_a);
            sum_gx[s] = sum_of_lanes<A>(sums[s].total_ab);
            if (!is_finite(sum_g[s]) || !is_finite(sum_gx[s])) {
                exact_gradient_sums(args, tile, tile.stat0 + s, sum_g[s], sum_gx[s]);
            }
        }
    }

    static void gradient(const KernelArgs& args, const Tile& tile) {
        Sink<T> dx_sink(args.stream);
        Sink<T> dresidual_sink(args.stream && args.dresidual);
        const View& view = args.view;
        for_rows(args, tile, [&](std::int64_t o, std::int64_t s, std::int64_t run) {
            const std::int64_t index = tile.batch * view.stat + s;
            const NormalizeMap<V> map = normalize_map(args, index);
            const GradientMap<V> gradient_map{
                V(coefficient<A>(args, Coefficient::grad_a)[index]),
                V(coefficient<A>(args, Coefficient::grad_b)[index]),
                V(coefficient<A>(args, Coefficient::grad_c)[index]),
                V(coefficient<A>(args, Coefficient::grad_scale)[index])};
            T* dx = run_of<T>(view, args.dx, tile.batch, o, s);
            if (s == tile.stat0) expect_next_rows(args, args.dx, tile, o, dx_sink);
            T* dresidual = run_of<T>(view, args.dresidual, tile.batch, o, s);
            for_segments<T>(
                args.stream, dx, dresidual, tile.inner0, tile.inner1,
                [&](std::int64_t i, std::int64_t count, bool direct) {
                    backward_at(args, tile, o, s, run, i)
                        .write(
                            dx_sink.open(dx + i, direct),
                            dresidual == nullptr ? nullptr
                                                 : dresidual_sink.open(dresidual + i, direct),
                            count, direct, args.frozen, [&](auto...) -> const auto& { return map; },
                            [&](auto...) -> const auto& { return gradient_map; });
                    dx_sink.close(count, direct);
                    if (dresidual != nullptr) dresidual_sink.close(count, direct);
                });
        });
    }

  private:
    static FASTNORM_FN const T* step(const T* p, std::int64_t bytes) {
        return reinterpret_cast<const T*>(reinterpret_cast<const char*>(p) + bytes);
    }

    static FASTNORM_FN NormalizeMap<V> normalize_map(const KernelArgs& args, std::int64_t index) {
        return {V(coefficient<A>(args, Coefficient::prescale)[index]),
                V(coefficient<A>(args, Coefficient::mean_hi)[index]),
                V(coefficient<A>(args, Coefficient::mean_lo)[index]),
                V(coefficient<A>(args, Coefficient::scale)[index]),
                V(coefficient<A>(args, Coefficient::bias)[index])};
    }

    static FASTNORM_FN Backward<T, kind> backward_at(const KernelArgs& args, const Tile& tile,
                                                     std::int64_t o, std::int64_t s,
                                                     std::int64_t run, std::int64_t i) {
        const T* residual = run_of<T>(args.view, args.residual, tile.batch, o, s);
        return {run_of<T>(args.view, args.dy, tile.batch, o, s) + i,
                run_of<T>(args.view, args.x, tile.batch, o, s) + i,
                residual == nullptr ? nullptr : residual + i,
                mask_at(args, run, i),
                activation_params<A>(args),
                args.stream};
    }

    // Calls f(outer, stat, run) for each row of a tile, in the order of memory.
    template <class F>
    static FASTNORM_FN void for_rows(const KernelArgs& args, const Tile& tile, F&& f) {
        const View& view = args.view;
        for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
            for (std::int64_t s = tile.stat0; s < tile.stat1; ++s) {
                f(o, s, run_index(view, tile.batch, o, s));
            }
        }
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

    static FASTNORM_FN std::int64_t run_index(const View& view, std::int64_t batch, std::int64_t o,
                                              std::int64_t s) {
        return (batch * view.outer + o) * view.stat + s;
    }

    // Where the walk of a reduction is fetch_bytes later: further on in the row, or, skip elements
    // before where it is now, in the next one.
    struct Walk {
        const View& view;
        std::int64_t outer;
        std::int64_t skip;  // negative: in the same row

        FASTNORM_FN Ahead in(const Operand& operand) const {
            if (skip < 0) return {fetch_bytes};
            if (outer + 1 == view.outer) return {};
            return {outer_offset(view, operand, outer + 1) - outer_offset(view, operand, outer) -
                    skip * static_cast<std::int64_t>(sizeof(T))};
        }
    };

    // Calls f(outer, from, to, walk) with pieces of a block's rows, in the order of memory.
    template <class F>
    static FASTNORM_FN void for_pieces(const View& view, const Tile& block, F&& f) {
        constexpr std::int64_t far = fetch_bytes / static_cast<std::int64_t>(sizeof(T));
        const bool single = block.stat1 - block.stat0 == 1;
        const std::int64_t whole = (view.inner - far - block.inner0) / lanes<A> * lanes<A>;
        std::int64_t middle = block.inner0 + (single && whole > 0 ? whole : 0);
        if (middle > block.inner1) middle = block.inner1;
        for (std::int64_t o = block.outer0; o < block.outer1; ++o) {
            if (middle > block.inner0) f(o, block.inner0, middle, Walk{view, o, -1});
            if (middle < block.inner1) {
                f(o, middle, block.inner1, Walk{view, o, single && whole > 0 ? middle : 0});
            }
        }
    }

    // Off the hot path: a tile whose sums left the range of A, or that has an infinity or NaN.
    // Once more in double, from x itself: an x far from a mean that is not its own may have a
    // centred(x) beyond the range.
    static __attribute__((noinline)) void exact_gradient_sums(const KernelArgs& args,
                                                              const Tile& tile, std::int64_t s,
                                                              double& sum_g, double& sum_gx) {
        alignas(64) A g[lanes<A>];
        const std::int64_t index = tile.batch * args.view.stat + s;
        const NormalizeMap<V> map = normalize_map(args, index);
        const ExactCentre<A> centre(args, index);
        Tile row = tile;
        row.stat0 = s;
        row.stat1 = s + 1;
        sum_g = sum_gx = 0.0;
        for_rows(args, row, [&](std::int64_t o, std::int64_t, std::int64_t run) {
            const T* const x = run_of<T>(args.view, args.x, tile.batch, o, s);
            for (std::int64_t i = tile.inner0; i < tile.inner1; i += lanes<A>) {
                const std::int64_t rest = tile.inner1 - i;
                const std::int64_t count = rest < lanes<A> ? rest : lanes<A>;
                backward_at(args, tile, o, s, run, i)
                    .each(
                        count, [&](auto...) -> const auto& { return map; },
                        [&](std::int64_t, auto v, auto, const Gradient<V>& at) {
                            at.g.store(g + v * V::width);
                        });
                for (std::int64_t k = 0; k < count; ++k) {
                    sum_g += static_cast<double>(g[k]);
                    sum_gx += centre.product(g[k], to_float(x[i + k]));
                }
            }
        });
    }

    // The sums of d = x - pivot and of d^2 over a tile, for each of its statistics.
    static FASTNORM_FN void add_deviations(const KernelArgs& args, const Tile& tile,
                                           const A* pivots, Sums* sums) {
        const std::int64_t stats = tile.stat1 - tile.stat0;
        for (std::int64_t s = 0; s < stats; ++s) sums[s].clear();
        for_row_blocks<A>(tile, [&](const Tile& block) {
            for_pieces(args.view, block,
                       [&](std::int64_t o, std::int64_t from, std::int64_t to, const Walk& walk) {
                           const Ahead ahead = walk.in(args.x);
                           const T* x =
                               run_of<T>(args.view, args.x, tile.batch, o, tile.stat0) + from;
                           for (std::int64_t s = 0; s < stats; ++s) {
                               const V pivot(pivots[s]);
                               sums[s].add([&](auto&& add) {
                                   for_packs<A>(to - from, [&](std::int64_t i, auto valid) {
                                       ahead.fetch<A>(x + i);
                                       for_vectors<A>([&](auto v) {
                                           const V d = load<A>(x + i, v, valid) - pivot;
                                           add(v, valid, d, d);
                                       });
                                   });
                               });
                               x = step(x, args.x.stat_stride);
                           }
                       });
            for (std::int64_t s = 0; s < stats; ++s) sums[s].fold();
        });
    }

    static FASTNORM_FN Moments moments_of(const Sums& sums, A pivot, double count, bool& good) {
        const double sum = sum_of_lanes<A>(sums.total_a);
        const double square_sum = sum_of_lanes<A>(sums.total_ab);
        const double origin = static_cast<double>(pivot);
        const Moments m = moments_about(origin, count, 1.0 / count, sum, square_sum);
        good = trustworthy<A>(m, origin, sum, square_sum);
        return m;
    }

    static FASTNORM_FN double count_of(const Tile& block) {
        return static_cast<double>((block.outer1 - block.outer0) * (block.inner1 - block.inner0));
    }

    static FASTNORM_FN const T* row_of(const KernelArgs& args, const Tile& block, std::int64_t o,
                                       std::int64_t s) {
        return run_of<T>(args.view, args.x, block.batch, o, s) + block.inner0;
    }

    // For each statistic the mean of some values, spread over the tile; that of equal values is
    // exact.
    static FASTNORM_FN void guess_pivots(const KernelArgs& args, const Tile& tile, A* pivots) {
        constexpr int samples = pivot_samples;
        const std::int64_t rows = tile.outer1 - tile.outer0;
        const std::int64_t row = tile.inner1 - tile.inner0;
        const T* sample[samples];  // of the first statistic
        for (int k = 0; k < samples; ++k) {
            const std::int64_t o = tile.outer0 + k * rows / samples;
            sample[k] = row_of(args, tile, o, tile.stat0) + k * 3 % samples * row / samples;
        }
        const A share = A(1) / static_cast<A>(samples);
        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) {
            const std::int64_t offset = s * args.x.stat_stride;
            const A first = to_float(*step(sample[0], offset));
            A sum = A(0), spread = A(0);
            unrolled<samples - 1>([&](auto k) {
                const A d = to_float(*step(sample[k + 1], offset)) - first;
                sum += d;
                spread += d < A(0) ? -d : d;
            });
            pivots[s] = pivot_near(first + sum * share, spread * share);
        }
    }

    // Off the hot path: a tile whose pivot was poor, or whose numbers are constant, tiny or huge.
    // Once more about its own mean, and in double where that does not help.
    static __attribute__((noinline)) Moments recompute(const KernelArgs& args, const Tile& tile,
                                                       std::int64_t s, double mean) {
        Tile rows = tile;
        rows.stat0 = s;
        rows.stat1 = s + 1;
        Sums sums;
        const A pivot = pivot_near(static_cast<A>(mean), A(0));
        add_deviations(args, rows, &pivot, &sums);
        bool good;
        const Moments m = moments_of(sums, pivot, count_of(tile), good);
        if (good || is_constant(args, tile, s, pivot)) return m;
        const A first = to_float(row_of(args, tile, tile.outer0, s)[0]);
        return exact_moments(m.count, first, [&](auto&& use) {
            for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
                const T* x = row_of(args, tile, o, s);
                for (std::int64_t i = 0; i < tile.inner1 - tile.inner0; ++i) use(to_float(x[i]));
            }
        });
    }

    static FASTNORM_FN bool is_constant(const KernelArgs& args, const Tile& block, std::int64_t s,
                                        A pivot) {
        const V value(pivot);
        unsigned differing = 0;
        for (std::int64_t o = block.outer0; o < block.outer1; ++o) {
            const T* x = row_of(args, block, o, s);
            for_packs<A>(block.inner1 - block.inner0, [&](std::int64_t i, auto valid) {
                for_vectors<A>([&](auto v) {
                    const V at = load<A>(x + i, v, valid);
                    unsigned found = bits((at < value) | (value < at));
                    if constexpr (!is_full<decltype(valid)>) {
                        found &= (1u << in_vector<A>(valid, v)) - 1u;
                    }
                    differing |= found;
                });
            });
        }
        return differing == 0;
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
