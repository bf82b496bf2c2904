// The rows traversal: inner is long and contiguous, vectors run along it, and one statistic's
// coefficients serve a whole row. Rows of neighbouring statistics lie side by side, so a tile holds
// a group of them and keeps their accumulators in L1. Included by kernels.cpp, once per instruction
// set.
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

template <class T, ActivationKind kind>
struct Rows {
    using A = accumulator_t<T>;
    using V = Vec<A>;

    static void moments(const KernelArgs& args, const Tile& tile, double* mean, double* m2) {
        Sums sums[rows_tile_stats];
        Moments totals[rows_tile_stats];
        const std::int64_t stats = tile.stat1 - tile.stat0;

        for_row_blocks<A>(tile, [&](const Tile& block) {
            const std::int64_t row = block.inner1 - block.inner0;
            for (std::int64_t s = 0; s < stats; ++s) {
                sums[s].clear(totals[s].count == 0 ? guess_pivot(args, block, block.stat0 + s)
                                                   : pivot_from<A>(totals[s]));
            }
            for (std::int64_t o = block.outer0; o < block.outer1; ++o) {
                const T* x = run_of<T>(args.view, args.x, block.batch, o, block.stat0);
                for (std::int64_t s = 0; s < stats; ++s) {
                    sums[s].add(x + block.inner0, row);
                    x = step(x, args.x.stat_stride);
                }
            }
            for (std::int64_t s = 0; s < stats; ++s) {
                bool good;
                Moments m = sums[s].moments(count_of(block), good);
                if (!good) m = recompute(args, block, block.stat0 + s, m.mean);
                totals[s] = merge(totals[s], m);
            }
        });
        for (std::int64_t s = 0; s < stats; ++s) {
            mean[s] = totals[s].mean;
            m2[s] = totals[s].m2;
        }
    }

    static void normalize(const KernelArgs& args, const Tile& tile, const Tile* ahead) {
        const Ahead ahead_x(args.x, tile, ahead);
        Sink<T> sink(args.stream);
        const View& view = args.view;
        for_rows(args, tile, [&](std::int64_t o, std::int64_t s, std::int64_t run) {
            const NormalizeMap<V> map = normalize_map(args, tile.batch * view.stat + s);
            const T* x = run_of<T>(view, args.x, tile.batch, o, s);
            const T* residual = run_of<T>(view, args.residual, tile.batch, o, s);
            T* y = run_of<T>(view, args.y, tile.batch, o, s);
            for_segments(tile.inner0, tile.inner1, [&](std::int64_t i, std::int64_t count) {
                const Forward<T, kind> forward{x + i, residual == nullptr ? nullptr : residual + i,
                                               mask_at(args, run, i), activation_params<A>(args),
                                               ahead_x};
                forward.write(sink.open(y + i), count, [&](auto...) -> const auto& { return map; });
                sink.close(count);
            });
        });
    }

    static void gradient_sums(const KernelArgs& args, const Tile& tile, double* sum_g,
                              double* sum_gx) {
        alignas(64) A sums[rows_tile_stats][lanes<A>];
        alignas(64) A products[rows_tile_stats][lanes<A>];
        const std::int64_t stats = tile.stat1 - tile.stat0;
        for (std::int64_t s = 0; s < stats; ++s) sum_g[s] = sum_gx[s] = 0.0;

        for_row_blocks<A>(tile, [&](const Tile& block) {
            for (std::int64_t s = 0; s < stats; ++s) {
                for (int i = 0; i < lanes<A>; ++i) sums[s][i] = products[s][i] = A(0);
            }
            for_rows(args, block, [&](std::int64_t o, std::int64_t s, std::int64_t run) {
                const NormalizeMap<V> map = normalize_map(args, block.batch * args.view.stat + s);
                const Backward<T, kind> backward =
                    backward_at(args, block, o, s, run, block.inner0);
                V g[vectors<A>], gx[vectors<A>];
                A* const g_lanes = sums[s - tile.stat0];
                A* const gx_lanes = products[s - tile.stat0];
                for_vectors<A>([&](auto v) {
                    g[v] = V::load(g_lanes + v * V::width);
                    gx[v] = V::load(gx_lanes + v * V::width);
                });
                backward.each(
                    block.inner1 - block.inner0, [&](auto...) -> const auto& { return map; },
                    [&](std::int64_t, auto v, auto valid, const Gradient<V>& at) {
                        if constexpr (is_full<decltype(valid)>) {
                            g[v] = g[v] + at.g;
                            gx[v] = fma(at.g, at.centred, gx[v]);
                        } else {
                            const int n = in_vector<A>(valid, v);
                            const V kept = keep_first(at.g, n);
                            g[v] = g[v] + kept;
                            gx[v] = fma(kept, keep_first(at.centred, n), gx[v]);
                        }
                    });
                for_vectors<A>([&](auto v) {
                    g[v].store(g_lanes + v * V::width);
                    gx[v].store(gx_lanes + v * V::width);
                });
            });
            for (std::int64_t s = 0; s < stats; ++s) {
                double g = sum_of_lanes(sums[s]);
                double gx = sum_of_lanes(products[s]);
                if (!is_finite(g) || !is_finite(gx)) {
                    exact_gradient_sums(args, block, tile.stat0 + s, g, gx);
                }
                sum_g[s] += g;
                sum_gx[s] += gx;
            }
        });
    }

    static void gradient(const KernelArgs& args, const Tile& tile, const Tile* ahead) {
        const Ahead ahead_dy(args.dy, tile, ahead), ahead_x(args.x, tile, ahead);
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
            T* dresidual = run_of<T>(view, args.dresidual, tile.batch, o, s);
            for_segments(tile.inner0, tile.inner1, [&](std::int64_t i, std::int64_t count) {
                backward_at(args, tile, o, s, run, i, ahead_dy, ahead_x)
                    .write(
                        dx_sink.open(dx + i),
                        dresidual == nullptr ? nullptr : dresidual_sink.open(dresidual + i), count,
                        args.frozen, [&](auto...) -> const auto& { return map; },
                        [&](auto...) -> const auto& { return gradient_map; });
                dx_sink.close(count);
                if (dresidual != nullptr) dresidual_sink.close(count);
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
                                                     std::int64_t run, std::int64_t i,
                                                     const Ahead& ahead_dy = {},
                                                     const Ahead& ahead_x = {}) {
        const T* residual = run_of<T>(args.view, args.residual, tile.batch, o, s);
        return {run_of<T>(args.view, args.dy, tile.batch, o, s) + i,
                run_of<T>(args.view, args.x, tile.batch, o, s) + i,
                residual == nullptr ? nullptr : residual + i,
                mask_at(args, run, i),
                activation_params<A>(args),
                ahead_dy,
                ahead_x};
    }

    // Calls f(outer, stat, run) for each row of a tile, in the order of memory.
    template <class F>
    static FASTNORM_FN void for_rows(const KernelArgs& args, const Tile& tile, F&& f) {
        const View& view = args.view;
        for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
            for (std::int64_t s = tile.stat0; s < tile.stat1; ++s) {
                f(o, s, (tile.batch * view.outer + o) * view.stat + s);
            }
        }
    }

    template <class F>
    static FASTNORM_FN void for_segments(std::int64_t from, std::int64_t to, F&& f) {
        for (std::int64_t i = from; i < to; i += segment) f(i, i + segment < to ? segment : to - i);
    }

    // Off the hot path: a block whose sums left the range of A, or that has an infinity or NaN.
    // Once more in double, from x itself: an x far from a mean that is not its own may have a
    // centred(x) beyond the range.
    static __attribute__((noinline)) void exact_gradient_sums(const KernelArgs& args,
                                                              const Tile& block, std::int64_t s,
                                                              double& sum_g, double& sum_gx) {
        alignas(64) A g[lanes<A>];
        const std::int64_t index = block.batch * args.view.stat + s;
        const NormalizeMap<V> map = normalize_map(args, index);
        const ExactCentre<A> centre(args, index);
        Tile row = block;
        row.stat0 = s;
        row.stat1 = s + 1;
        sum_g = sum_gx = 0.0;
        for_rows(args, row, [&](std::int64_t o, std::int64_t, std::int64_t run) {
            const T* const x = run_of<T>(args.view, args.x, block.batch, o, s);
            for (std::int64_t i = block.inner0; i < block.inner1; i += lanes<A>) {
                const std::int64_t rest = block.inner1 - i;
                const std::int64_t count = rest < lanes<A> ? rest : lanes<A>;
                backward_at(args, block, o, s, run, i)
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

    // Sums of d = x - pivot and of d^2, a lane each.
    struct Sums {
        alignas(64) A sums[lanes<A>];
        alignas(64) A squares[lanes<A>];
        A pivot;

        FASTNORM_FN void clear(A new_pivot) {
            pivot = new_pivot;
            for (int i = 0; i < lanes<A>; ++i) sums[i] = squares[i] = A(0);
        }

        FASTNORM_FN void add(const T* x, std::int64_t count) {
            const V origin(pivot);
            V sum[vectors<A>], square[vectors<A>];
            for_vectors<A>([&](auto v) {
                sum[v] = V::load(sums + v * V::width);
                square[v] = V::load(squares + v * V::width);
            });
            for_packs<A>(count, [&](std::int64_t i, auto valid) {
                for_vectors<A>([&](auto v) {
                    V d = load<A>(x + i, v, valid) - origin;
                    if constexpr (!is_full<decltype(valid)>) {
                        d = keep_first(d, in_vector<A>(valid, v));
                    }
                    sum[v] = sum[v] + d;
                    square[v] = fma(d, d, square[v]);
                });
            });
            for_vectors<A>([&](auto v) {
                sum[v].store(sums + v * V::width);
                square[v].store(squares + v * V::width);
            });
        }

        FASTNORM_FN Moments moments(double count, bool& good) const {
            const double sum = sum_of_lanes(sums);
            const double square_sum = sum_of_lanes(squares);
            const Moments m =
                moments_about(static_cast<double>(pivot), count, 1.0 / count, sum, square_sum);
            good = trustworthy<A>(m, static_cast<double>(pivot), sum, square_sum);
            return m;
        }
    };

    static FASTNORM_FN double count_of(const Tile& block) {
        return static_cast<double>((block.outer1 - block.outer0) * (block.inner1 - block.inner0));
    }

    static FASTNORM_FN const T* row_of(const KernelArgs& args, const Tile& block, std::int64_t o,
                                       std::int64_t s) {
        return run_of<T>(args.view, args.x, block.batch, o, s) + block.inner0;
    }

    // The mean of some values; that of equal values is exact.
    static FASTNORM_FN A guess_pivot(const KernelArgs& args, const Tile& block, std::int64_t s) {
        const std::int64_t row = block.inner1 - block.inner0;
        const std::int64_t count = (block.outer1 - block.outer0) * row;
        const int samples = pivot_samples(count);
        const A first = to_float(row_of(args, block, block.outer0, s)[0]);
        A sum = A(0), spread = A(0);
        for (int k = 1; k < samples; ++k) {
            const std::int64_t at = k * (count / samples);
            const A d = to_float(row_of(args, block, block.outer0 + at / row, s)[at % row]) - first;
            sum += d;
            spread += d < A(0) ? -d : d;
        }
        const A share = A(1) / static_cast<A>(samples);
        return pivot_near(first + sum * share, spread * share);
    }

    // Off the hot path: a block whose pivot was poor, or whose numbers are constant, tiny or huge.
    // Once more about its own mean, and in double where that does not help.
    static __attribute__((noinline)) Moments recompute(const KernelArgs& args, const Tile& block,
                                                       std::int64_t s, double mean) {
        const std::int64_t row = block.inner1 - block.inner0;
        Sums sums;
        sums.clear(pivot_near(static_cast<A>(mean), A(0)));
        for (std::int64_t o = block.outer0; o < block.outer1; ++o) {
            sums.add(row_of(args, block, o, s), row);
        }
        bool good;
        const Moments m = sums.moments(count_of(block), good);
        if (good || is_constant(args, block, s, sums.pivot)) return m;
        const A first = to_float(row_of(args, block, block.outer0, s)[0]);
        return exact_moments(m.count, first, [&](auto&& use) {
            for (std::int64_t o = block.outer0; o < block.outer1; ++o) {
                const T* x = row_of(args, block, o, s);
                for (std::int64_t i = 0; i < row; ++i) use(to_float(x[i]));
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
