// The columns traversal: inner is 1 or short, vectors run along stat * inner, and each lane has its
// own accumulator and its own coefficients. Included by kernels.cpp, once per instruction set.
#pragma once

#include <initializer_list>

#include "cpu/spans.h"
#include "cpu/stream.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class T, ActivationKind kind>
struct Columns {
    using A = accumulator_t<T>;
    using V = Vec<A>;

    static void moments(const KernelArgs& args, const Tile& tile, double* mean, double* m2) {
        Sums sums;
        alignas(64) double means[columns_tile_lanes];
        alignas(64) double m2s[columns_tile_lanes];
        const Halves halves(args, tile, lie_side_by_side(args, {&args.x}));
        for (std::int64_t j = 0; j < halves.wide.count; ++j) means[j] = m2s[j] = 0.0;
        double count = 0;
        double wide_count = 0;  // of the lanes that the rest does not have

        for_blocks(halves, [&](const Lanes& at, std::int64_t outer0, std::int64_t outer1) {
            // merge() of stats.h, whose divisions are the same for all lanes.
            const double rows = static_cast<double>((outer1 - outer0) / at.rows);
            const double share = rows / (count + rows);
            const double weight = count * share;
            const auto add = [&](std::int64_t j, const Moments& m) {
                const double delta = m.mean - means[j];
                means[j] = count == 0 ? m.mean : means[j] + delta * share;
                m2s[j] = count == 0 ? m.m2 : m2s[j] + m.m2 + delta * delta * weight;
            };
            const double per_row = 1.0 / rows;
            if (count == 0) sums.guess_pivots(args, tile, at, outer0, outer1);
            sums.add(args, tile, at, outer0, outer1);
            std::int64_t poor = 0;
            for (std::int64_t j = 0; j < at.count; ++j) {
                bool good;
                const Moments m = sums.moments(j, rows, per_row, good);
                if (good) {
                    add(j, m);
                } else {
                    sums.poor[poor++] = {j, m.mean};
                }
            }
            if (poor > 0) recompute(args, tile, at, outer0, outer1, sums, poor, add);
            count += rows;
            if (at.rows == halves.wide.rows) wide_count = count;
        });

        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) {
            Moments m;
            for_lanes_of(args, halves, s, [&](std::int64_t j, bool in_rest) {
                m = merge(m, {in_rest ? count : wide_count, means[j], m2s[j]});
            });
            mean[s] = m.mean;
            m2[s] = m.m2;
        }
    }

    static void normalize(const KernelArgs& args, const Tile& tile, const Tile*) {
        Sink<T> sink(args.stream);
        const bool together = lie_side_by_side(args, {&args.x, &args.residual, &args.y});
        for_rows(Halves(args, tile, together), [&](const Lanes& at, std::int64_t o) {
            const T* x = row_of(args, args.x, tile, o);
            const T* residual = row_of(args, args.residual, tile, o);
            T* y = row_of(args, args.y, tile, o);
            const std::int64_t run = tile.batch * args.view.outer + o;
            for_segments(at, [&](std::int64_t i, std::int64_t count) {
                const Forward<T, kind> forward{x + i, residual == nullptr ? nullptr : residual + i,
                                               mask_at(args, run, i), activation_params<A>(args)};
                forward.write(sink.open(y + i), count, maps_from(args, at, i));
                sink.close(count);
            });
        });
    }

    static void gradient_sums(const KernelArgs& args, const Tile& tile, double* sum_g,
                              double* sum_gx) {
        alignas(64) A sums[columns_tile_lanes];
        alignas(64) A products[columns_tile_lanes];
        alignas(64) double totals[2][columns_tile_lanes];
        std::int64_t poor[columns_tile_lanes];
        const bool together = lie_side_by_side(args, {&args.dy, &args.x, &args.residual});
        const Halves halves(args, tile, together);
        for (std::int64_t j = 0; j < halves.wide.count; ++j) totals[0][j] = totals[1][j] = 0.0;

        for_blocks(halves, [&](const Lanes& at, std::int64_t outer0, std::int64_t outer1) {
            for (std::int64_t j = 0; j < at.count; ++j) sums[j] = products[j] = A(0);
            for (std::int64_t o = outer0; o < outer1; o += at.rows) {
                backward_at(args, tile, o, at.first)
                    .each(at.count, maps_from(args, at, at.first),
                          [&](std::int64_t i, auto v, auto valid, const Gradient<V>& of) {
                              A* const g = sums + i;
                              A* const gx = products + i;
                              store<A>(g, v, load<A>(g, v, valid) + of.g, valid);
                              store<A>(gx, v, fma(of.g, of.centred, load<A>(gx, v, valid)), valid);
                          });
            }
            std::int64_t out_of_range = 0;
            for (std::int64_t j = 0; j < at.count; ++j) {
                if (is_finite(sums[j]) && is_finite(products[j])) {
                    totals[0][j] += static_cast<double>(sums[j]);
                    totals[1][j] += static_cast<double>(products[j]);
                } else {
                    poor[out_of_range++] = j;
                }
            }
            if (out_of_range > 0) {
                add_exactly(args, tile, at, outer0, outer1, poor, out_of_range, totals);
            }
        });

        for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) {
            sum_g[s] = sum_gx[s] = 0.0;
            for_lanes_of(args, halves, s, [&](std::int64_t j, bool) {
                sum_g[s] += totals[0][j];
                sum_gx[s] += totals[1][j];
            });
        }
    }

    static void gradient(const KernelArgs& args, const Tile& tile, const Tile*) {
        Sink<T> dx_sink(args.stream);
        Sink<T> dresidual_sink(args.stream && args.dresidual);
        const bool together =
            lie_side_by_side(args, {&args.dy, &args.x, &args.residual, &args.dx, &args.dresidual});
        for_rows(Halves(args, tile, together), [&](const Lanes& at, std::int64_t o) {
            T* dx = row_of(args, args.dx, tile, o);
            T* dresidual = row_of(args, args.dresidual, tile, o);
            for_segments(at, [&](std::int64_t i, std::int64_t count) {
                backward_at(args, tile, o, i)
                    .write(dx_sink.open(dx + i),
                           dresidual == nullptr ? nullptr : dresidual_sink.open(dresidual + i),
                           count, args.frozen, maps_from(args, at, i),
                           gradient_maps_from(args, at, i));
                dx_sink.close(count);
                if (dresidual != nullptr) dresidual_sink.close(count);
            });
        });
    }

  private:
    // The lanes of a tile within a row, or within several rows side by side: [first, first +
    // count).
    struct Lanes {
        std::int64_t first, count, rows, batch_offset;
        FASTNORM_FN Lanes(const KernelArgs& args, const Tile& tile, std::int64_t rows_together)
            : first(tile.stat0 * args.view.inner),
              count((tile.stat1 - tile.stat0) * args.view.inner * rows_together),
              rows(rows_together),
              batch_offset(tile.batch * (args.view.coefficients() / args.view.batch)) {}
    };

    // A tile's rows: as many as can be taken together, and the rest one by one.
    struct Halves {
        Lanes wide, narrow;
        std::int64_t begin, middle, end;
        FASTNORM_FN Halves(const KernelArgs& args, const Tile& tile, bool together)
            : wide(args, tile, together ? args.view.rows_together() : 1),
              narrow(args, tile, 1),
              begin(tile.outer0),
              middle(tile.outer0 + (tile.outer1 - tile.outer0) / wide.rows * wide.rows),
              end(tile.outer1) {}
    };

    // Whether rows follow each other without gaps in all of these tensors, and in the mask, as far
    // as they are there. It must not depend on whether there is a mask, nor for a reduction on
    // tensors that it does not read: its result would.
    static FASTNORM_FN bool lie_side_by_side(const KernelArgs& args,
                                             std::initializer_list<const Operand*> operands) {
        const View& view = args.view;
        if (view.rows_together() == 1) return false;
        if (Act<kind>::piecewise && view.run() % 8 != 0) return false;
        for (const Operand* operand : operands) {
            if (!*operand) continue;
            std::int64_t dense = view.run() * static_cast<std::int64_t>(sizeof(T));
            for (int d = view.outer_dims - 1; d >= 0; --d) {
                if (operand->outer_stride[d] != dense) return false;
                dense *= view.outer_extent[d];
            }
        }
        return true;
    }

    // Calls f(lane, whether the rest has it) for each lane of the tile's statistic s.
    template <class F>
    static FASTNORM_FN void for_lanes_of(const KernelArgs& args, const Halves& halves,
                                         std::int64_t s, F&& f) {
        const std::int64_t inner = args.view.inner;
        for (std::int64_t row = 0; row < halves.wide.rows; ++row) {
            const std::int64_t first = row * halves.narrow.count + s * inner;
            for (std::int64_t j = first; j < first + inner; ++j) f(j, row == 0);
        }
    }

    static FASTNORM_FN T* row_of(const KernelArgs& args, const Operand& operand, const Tile& tile,
                                 std::int64_t o) {
        return run_of<T>(args.view, operand, tile.batch, o, 0);
    }

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
        const T* residual = row_of(args, args.residual, tile, o);
        const std::int64_t run = tile.batch * args.view.outer + o;
        return {row_of(args, args.dy, tile, o) + i, row_of(args, args.x, tile, o) + i,
                residual == nullptr ? nullptr : residual + i, mask_at(args, run, i),
                activation_params<A>(args)};
    }

    // Off the hot path: some lanes' gradients of a block whose sums left the range of A, or that
    // have an infinity or NaN. Once more in double, from x itself: an x far from a mean that is not
    // its own may have a centred(x) beyond the range.
    static __attribute__((noinline)) void add_exactly(const KernelArgs& args, const Tile& tile,
                                                      const Lanes& at, std::int64_t outer0,
                                                      std::int64_t outer1,
                                                      const std::int64_t* chosen,
                                                      std::int64_t count,
                                                      double (*totals)[columns_tile_lanes]) {
        alignas(64) A g[columns_tile_lanes];
        for (std::int64_t o = outer0; o < outer1; o += at.rows) {
            const T* const x = row_of(args, args.x, tile, o) + at.first;
            backward_at(args, tile, o, at.first)
                .each(at.count, maps_from(args, at, at.first),
                      [&](std::int64_t i, auto v, auto valid, const Gradient<V>& of) {
                          store<A>(g + i, v, of.g, valid);
                      });
            for (std::int64_t k = 0; k < count; ++k) {
                const std::int64_t j = chosen[k];
                const ExactCentre<A> centre(args, at.batch_offset + at.first + j);
                totals[0][j] += static_cast<double>(g[j]);
                totals[1][j] += centre.product(g[j], to_float(x[j]));
            }
        }
    }

    // Calls f(lanes, outer0, outer1) for each block of rows of a tile: at most columns_block values
    // a lane.
    template <class F>
    static FASTNORM_FN void for_blocks(const Halves& halves, F&& f) {
        const auto each = [&](const Lanes& at, std::int64_t from, std::int64_t to) {
            const std::int64_t block = columns_block * at.rows;
            for (std::int64_t o = from; o < to; o += block) {
                f(at, o, o + block < to ? o + block : to);
            }
        };
        each(halves.wide, halves.begin, halves.middle);
        each(halves.narrow, halves.middle, halves.end);
    }

    // Calls f(lanes, outer) for each row, or rows side by side.
    template <class F>
    static FASTNORM_FN void for_rows(const Halves& halves, F&& f) {
        for (std::int64_t o = halves.begin; o < halves.middle; o += halves.wide.rows) {
            f(halves.wide, o);
        }
        for (std::int64_t o = halves.middle; o < halves.end; ++o) f(halves.narrow, o);
    }

    // Calls f(i, count) for each segment of the tile's lanes; i counts from the row's start and is
    // a multiple of 8 beyond the tile's first lane.
    template <class F>
    static FASTNORM_FN void for_segments(const Lanes& at, F&& f) {
        const std::int64_t end = at.first + at.count;
        for (std::int64_t i = at.first; i < end; i += segment) {
            f(i, i + segment < end ? segment : end - i);
        }
    }

    // Sums of d = x - pivot and of d^2 over a block's rows, a lane each.
    struct Sums {
        alignas(64) A pivots[columns_tile_lanes];
        alignas(64) A sums[columns_tile_lanes];
        alignas(64) A squares[columns_tile_lanes];
        // Lanes whose sums cannot be trusted, with their means as far as those are known.
        struct {
            std::int64_t lane;
            double mean;
        } poor[columns_tile_lanes];

        // The mean of some rows; that of equal values is exact.
        FASTNORM_FN void guess_pivots(const KernelArgs& args, const Tile& tile, const Lanes& at,
                                      std::int64_t outer0, std::int64_t outer1) {
            const std::int64_t rows = (outer1 - outer0) / at.rows;
            const int samples = pivot_samples(rows);
            const T* const first = row_of(args, args.x, tile, outer0) + at.first;
            for (std::int64_t j = 0; j < at.count; ++j) sums[j] = squares[j] = A(0);
            for (int k = 1; k < samples; ++k) {
                const std::int64_t o = outer0 + k * (rows / samples) * at.rows;
                const T* const x = row_of(args, args.x, tile, o) + at.first;
                for_packs<A>(at.count, [&](std::int64_t i, auto valid) {
                    for_vectors<A>([&](auto v) {
                        const V d = load<A>(x + i, v, valid) - load<A>(first + i, v, valid);
                        store<A>(sums + i, v, load<A>(sums + i, v, valid) + d, valid);
                        store<A>(squares + i, v, load<A>(squares + i, v, valid) + abs(d), valid);
                    });
                });
            }
            const A share = A(1) / static_cast<A>(samples);
            for (std::int64_t j = 0; j < at.count; ++j) {
                pivots[j] = pivot_near(to_float(first[j]) + sums[j] * share, squares[j] * share);
            }
        }

        FASTNORM_FN void add(const KernelArgs& args, const Tile& tile, const Lanes& at,
                             std::int64_t outer0, std::int64_t outer1) {
            for (std::int64_t j = 0; j < at.count; ++j) sums[j] = squares[j] = A(0);
            std::int64_t o = outer0;
            for (; o + 4 * at.rows <= outer1; o += 4 * at.rows) add_rows<4>(args, tile, at, o);
            for (; o < outer1; o += at.rows) add_rows<1>(args, tile, at, o);
        }

        // Several rows at a time, in order: fewer loads and stores of the sums.
        template <int rows>
        FASTNORM_FN void add_rows(const KernelArgs& args, const Tile& tile, const Lanes& at,
                                  std::int64_t o) {
            const T* x[rows];
            for (int r = 0; r < rows; ++r) {
                x[r] = row_of(args, args.x, tile, o + r * at.rows) + at.first;
            }
            for_packs<A>(at.count, [&](std::int64_t i, auto valid) {
                for_vectors<A>([&](auto v) {
                    const V pivot = load<A>(pivots + i, v, valid);
                    V sum = load<A>(sums + i, v, valid);
                    V square = load<A>(squares + i, v, valid);
                    for (int r = 0; r < rows; ++r) {
                        const V d = load<A>(x[r] + i, v, valid) - pivot;
                        sum = sum + d;
                        square = fma(d, d, square);
                    }
                    store<A>(sums + i, v, sum, valid);
                    store<A>(squares + i, v, square, valid);
                });
            });
        }

        // per_row: 1 / rows.
        FASTNORM_FN Moments moments(std::int64_t j, double rows, double per_row, bool& good) const {
            const double pivot = static_cast<double>(pivots[j]);
            const double sum = static_cast<double>(sums[j]);
            const double square_sum = static_cast<double>(squares[j]);
            const Moments m = moments_about(pivot, rows, per_row, sum, square_sum);
            good = trustworthy<A>(m, pivot, sum, square_sum);
            return m;
        }
    };

    // Off the hot path: lanes whose pivot was poor, or whose numbers are constant, tiny or huge.
    // Once more about their own means (all lanes: that is what vectors do), and in double where
    // that does not help.
    template <class Add>
    static __attribute__((noinline)) void recompute(const KernelArgs& args, const Tile& tile,
                                                    const Lanes& at, std::int64_t outer0,
                                                    std::int64_t outer1, Sums& sums,
                                                    std::int64_t poor, Add&& add) {
        for (std::int64_t p = 0; p < poor; ++p) {
            sums.pivots[sums.poor[p].lane] = pivot_near(static_cast<A>(sums.poor[p].mean), A(0));
        }
        sums.add(args, tile, at, outer0, outer1);
        alignas(64) A spread[columns_tile_lanes];
        largest_deviations(args, tile, at, outer0, outer1, sums.pivots, spread);
        for (std::int64_t p = 0; p < poor; ++p) {
            const std::int64_t j = sums.poor[p].lane;
            bool good;
            const double rows = static_cast<double>((outer1 - outer0) / at.rows);
            Moments m = sums.moments(j, rows, 1.0 / rows, good);
            if (!good && !(spread[j] == A(0) && sums.sums[j] == A(0))) {
                const auto value = [&](std::int64_t o) {
                    return to_float(row_of(args, args.x, tile, o)[at.first + j]);
                };
                m = exact_moments(m.count, value(outer0), [&](auto&& use) {
                    for (std::int64_t o = outer0; o < outer1; o += at.rows) use(value(o));
                });
            }
            add(j, m);
        }
    }

    // The largest |x - pivot| of each lane, NaN left out: 0 where all values are the pivot.
    static FASTNORM_FN void largest_deviations(const KernelArgs& args, const Tile& tile,
                                               const Lanes& at, std::int64_t outer0,
                                               std::int64_t outer1, const A* pivots, A* largest) {
        for (std::int64_t j = 0; j < at.count; ++j) largest[j] = A(0);
        for (std::int64_t o = outer0; o < outer1; o += at.rows) {
            const T* const x = row_of(args, args.x, tile, o) + at.first;
            for_packs<A>(at.count, [&](std::int64_t i, auto valid) {
                for_vectors<A>([&](auto v) {
                    const V d = abs(load<A>(x + i, v, valid) - load<A>(pivots + i, v, valid));
                    const V most = load<A>(largest + i, v, valid);
                    store<A>(largest + i, v, select(d > most, d, most), valid);
                });
            });
        }
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
