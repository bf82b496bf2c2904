// Rows of fewer elements than a pack that are all of their statistic each: a vector has one element
// of several rows, for what it costs to begin and to end a row, or the part of a pack, is more than
// the row. A row's elements are added up in their order, whatever the vectors' width. Compiled once
// per instruction set.
#pragma once

#include "cpu/rows_layout.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class A>
FASTNORM_FN bool are_tiny_rows(const View& view) {
    return view.outer == 1 && view.inner < lanes<A>;
}

// As many rows as a vector has lanes, from one on; behind the last one it comes again.
template <class T>
class Transposed {
  public:
    using A = accumulator_t<T>;
    using V = Vec<A>;
    static constexpr int width = V::width;

    FASTNORM_FN Transposed(const KernelArgs& args, const Tile& tile, std::int64_t first)
        : args_(args), tile_(tile), first_(first), rows_(tile.stat1 - first) {
        if (rows_ > width) rows_ = width;
    }

    FASTNORM_FN void load(const Operand& operand) {
        const std::int64_t n = args_.view.inner;
        for (int r = 0; r < width; ++r) {
            const T* const row = at<const T>(operand, r < rows_ ? r : rows_ - 1);
            for (std::int64_t i = 0; i < n; ++i) values_[i * width + r] = row[i];
        }
    }
    // What comes in the place of element i of each row.
    FASTNORM_FN V element(std::int64_t i) const { return V::load(values_ + i * width); }
    FASTNORM_FN void set(std::int64_t i, V values) { values.store(values_ + i * width); }
    FASTNORM_FN void store(const Operand& operand) const {
        const std::int64_t n = args_.view.inner;
        for (std::int64_t r = 0; r < rows_; ++r) {
            T* const row = at<T>(operand, r);
            for (std::int64_t i = 0; i < n; ++i) row[i] = values_[i * width + r];
        }
    }

    // One for each row, from an array of every statistic's.
    FASTNORM_FN V coefficient(Coefficient which) const {
        const A* const of =
            FASTNORM_ISA::coefficient<A>(args_, which) + tile_.batch * args_.view.stat + first_;
        return rows_ == width ? V::load(of) : V::load(of, static_cast<int>(rows_));
    }
    FASTNORM_FN std::int64_t rows() const { return rows_; }

  private:
    template <class P>
    FASTNORM_FN P* at(const Operand& operand, std::int64_t r) const {
        return run_of<T>(args_.view, operand, tile_.batch, 0, first_ + r);
    }

    const KernelArgs& args_;
    const Tile& tile_;
    std::int64_t first_, rows_;
    alignas(64) T values_[lanes<A> * width];
};

template <class T>
struct TinyRows {
    using A = accumulator_t<T>;
    using V = Vec<A>;

    // About means that are found first: the sums of differences and of their squares.
    static FASTNORM_FN void moments(const KernelArgs& args, const Tile& tile, A* pivots,
                                    double* first, double* second) {
        const std::int64_t n = args.view.inner;
        const V share(A(1) / static_cast<A>(n));
        for (std::int64_t s = tile.stat0; s < tile.stat1; s += V::width) {
            Transposed<T> x(args, tile, s);
            x.load(args.x);
            V mean, sum, square_sum;
            if (args.centred) {
                const V origin = x.element(0);
                for (std::int64_t i = 1; i < n; ++i) sum = sum + (x.element(i) - origin);
                mean = origin + sum * share;
                mean = select(mean - mean <= V(), mean, V());  // finite
                sum = V();
            }
            for (std::int64_t i = 0; i < n; ++i) {
                const V d = x.element(i) - mean;
                sum = sum + d;
                square_sum = fma(d, d, square_sum);
            }
            leave(mean, x.rows(), pivots + (s - tile.stat0));
            leave(sum, x.rows(), first + (s - tile.stat0));
            leave(square_sum, x.rows(), second + (s - tile.stat0));
        }
    }

    // Whether a map has nothing else to do than normalize().
    static FASTNORM_FN bool are_plain(const KernelArgs& args) {
        return are_tiny_rows<A>(args.view) && !args.residual && args.mask == nullptr &&
               !args.cast_before_weight;
    }

    // affine(z, i, centred(x)) is a map's, of element i.
    template <ActivationKind kind, class Affine>
    static FASTNORM_FN void normalize(const KernelArgs& args, const Tile& tile, Affine&& affine) {
        const ActParams<A> params = activation_params<A>(args);
        for (std::int64_t s = tile.stat0; s < tile.stat1; s += V::width) {
            Transposed<T> rows(args, tile, s);
            rows.load(args.x);
            const auto z =
                normalize_map_of<V>([&](Coefficient which) { return rows.coefficient(which); });
            for (std::int64_t i = 0; i < args.view.inner; ++i) {
                rows.set(i, Act<kind>::value(affine(z, i, z.centred(rows.element(i))), params));
            }
            rows.store(args.y);
        }
    }

  private:
    template <class P>
    static FASTNORM_FN void leave(V values, std::int64_t count, P* to) {
        alignas(64) A of_rows[V::width];
        values.store(of_rows);
        for (std::int64_t r = 0; r < count; ++r) to[r] = static_cast<P>(of_rows[r]);
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
