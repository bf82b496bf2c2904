// What belongs to a row under the rows traversal, and the orders in which a tile's rows are walked:
// that of memory, block by block for a reduction, and for a map with a reduction interleaved.
// Compiled once per instruction set.
#pragma once

#include "cpu/spans.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

// Runs are numbered in the order of memory: the rows of the mask.
FASTNORM_FN std::int64_t run_index(const View& view, std::int64_t batch, std::int64_t o,
                                   std::int64_t s) {
    return (batch * view.outer + o) * view.stat + s;
}

// The maps of what of(coefficient) gives.
template <class V, class Of>
FASTNORM_FN NormalizeMap<V> normalize_map_of(Of&& of) {
    return {of(Coefficient::prescale), of(Coefficient::mean_hi), of(Coefficient::mean_lo),
            of(Coefficient::scale), of(Coefficient::bias)};
}
template <class V, class Of>
FASTNORM_FN GradientMap<V> gradient_map_of(Of&& of) {
    return {of(Coefficient::grad_a), of(Coefficient::grad_b), of(Coefficient::grad_c),
            of(Coefficient::grad_scale)};
}

template <class A>
FASTNORM_FN NormalizeMap<Vec<A>> normalize_map(const KernelArgs& args, std::int64_t index) {
    return normalize_map_of<Vec<A>>(
        [&](Coefficient which) { return Vec<A>(coefficient<A>(args, which)[index]); });
}
template <class A>
FASTNORM_FN GradientMap<Vec<A>> gradient_map(const KernelArgs& args, std::int64_t index) {
    return gradient_map_of<Vec<A>>(
        [&](Coefficient which) { return Vec<A>(coefficient<A>(args, which)[index]); });
}

// The same of several statistics, from an index on.
template <class A, int rows>
FASTNORM_FN Lockstep<Vec<A>, rows> coefficients(const KernelArgs& args, Coefficient which,
                                                std::int64_t index) {
    return Lockstep<Vec<A>, rows>::each(
        [&](auto r) { return Vec<A>(coefficient<A>(args, which)[index + r]); });
}
template <class A, int rows>
FASTNORM_FN auto normalize_maps(const KernelArgs& args, std::int64_t index) {
    return normalize_map_of<Lockstep<Vec<A>, rows>>(
        [&](Coefficient which) { return coefficients<A, rows>(args, which, index); });
}
template <class A, int rows>
FASTNORM_FN auto gradient_maps(const KernelArgs& args, std::int64_t index) {
    return gradient_map_of<Lockstep<Vec<A>, rows>>(
        [&](Coefficient which) { return coefficients<A, rows>(args, which, index); });
}

// The rows of an operand at one outer index, or null.
template <class T>
struct SideBySide {
    T* first;
    std::int64_t stride;  // in bytes

    FASTNORM_FN SideBySide(T* row, std::int64_t bytes) : first(row), stride(bytes) {}
    FASTNORM_FN SideBySide(const View& view, const Operand& operand, const Tile& tile)
        : SideBySide(run_of<T>(view, operand, tile.batch, 0, tile.stat0), operand.stat_stride) {}

    FASTNORM_FN T* row(std::int64_t s) const {
        using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
        return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + s * stride);
    }
    FASTNORM_FN SideBySide from(std::int64_t s) const {
        return {first == nullptr ? nullptr : row(s), stride};
    }
};

// So many of them are taken at a time, as far as there are registers: the additions of one row wait
// for each other, and what rows share is loaded once.
template <class A>
using SeveralRows = RowCount<vectors<A> <= 2 ? 4 : 1>;
// Where a row has more coefficients.
template <class A>
using FewRows = RowCount<vectors<A> <= 2 ? 2 : 1>;

// Calls f(how many, s) for rows of [0, count) from s on.
template <int several, class F>
FASTNORM_FN void for_several(RowCount<several> at_a_time, std::int64_t count, F&& f) {
    std::int64_t s = 0;
    for (; s + several <= count; s += several) f(at_a_time, s);
    for (; s < count; ++s) f(One(), s);
}

// Where the coefficients of a row's maps come from, for element i of the row on: z_from(i) and
// dx_from(i), by what spans.h says, and what of a gradient counts for the row's sums.
//
// From the row's statistic alone.
template <class A>
struct StatMaps {
    using V = Vec<A>;
    NormalizeMap<V> z;

    FASTNORM_FN StatMaps(const KernelArgs& args, std::int64_t index)
        : z(normalize_map<A>(args, index)) {}

    FASTNORM_FN auto z_from(std::int64_t) const {
        return [this](auto...) -> const auto& { return z; };
    }
    template <class Valid>
    FASTNORM_FN V weighted(V g, std::int64_t, int, Valid) const {
        return g;
    }
};

// With the element's own weight and bias. In this order: scale * weight may be too large where the
// result is not.
template <class V>
FASTNORM_FN V affine_of_lanes(V centred, V scale, V weight, V bias) {
    return fma(centred * scale, weight, bias);
}

// From the row's statistic, and from the element's own weight and bias.
template <class A>
struct LaneMaps {
    using V = Vec<A>;
    NormalizeMap<V> z;  // but for weight and bias
    const A* weights;
    const A* biases;  // or null

    FASTNORM_FN LaneMaps(const KernelArgs& args, std::int64_t index)
        : z(normalize_map<A>(args, index)),
          weights(static_cast<const A*>(args.weights)),
          biases(static_cast<const A*>(args.biases)) {}

    FASTNORM_FN auto z_from(std::int64_t from) const {
        return [this, from](std::int64_t i, int v, auto valid) {
            return At<decltype(valid)>{*this, from + i, v, valid};
        };
    }
    // As a NormalizeMap: what it needs is loaded where it is used.
    template <class Valid>
    struct At {
        const LaneMaps& of;
        std::int64_t i;
        int v;
        Valid valid;

        FASTNORM_FN V centred(V x) const { return of.z.centred(x); }
        FASTNORM_FN V affine(V centred) const {
            const V weight = load<A>(of.weights + i, v, valid);
            return affine_of_lanes(centred, of.z.scale, weight, of.bias(i, v, valid));
        }
    };
    template <class Valid>
    FASTNORM_FN V bias(std::int64_t i, int v, Valid valid) const {
        return biases == nullptr ? V() : load<A>(biases + i, v, valid);
    }
    template <class Valid>
    FASTNORM_FN V weighted(V g, std::int64_t i, int v, Valid valid) const {
        return g * load<A>(weights + i, v, valid);
    }
};

template <class T, ActivationKind kind, class D = T>
FASTNORM_FN Backward<T, kind, D> backward_at(const KernelArgs& args, std::int64_t batch,
                                             std::int64_t o, std::int64_t s, std::int64_t i) {
    using A = accumulator_t<T>;
    const View& view = args.view;
    const T* residual = run_of<T>(view, args.residual, batch, o, s);
    A* g = run_of<A>(view, args.g, batch, o, s);
    return {run_of<D>(view, args.dy, batch, o, s) + i,
            run_of<T>(view, args.x, batch, o, s) + i,
            residual == nullptr ? nullptr : residual + i,
            mask_at(args, run_index(view, batch, o, s), i),
            activation_params<A>(args),
            args.stream,
            g == nullptr ? nullptr : g + i};
}

// Calls f(outer, stat) for each row of a tile, in the order of memory.
template <class F>
FASTNORM_FN void for_rows(const Tile& tile, F&& f) {
    for (std::int64_t o = tile.outer0; o < tile.outer1; ++o) {
        for (std::int64_t s = tile.stat0; s < tile.stat1; ++s) f(o, s);
    }
}

// A tile's blocks: at most rows_block values per statistic, whole rows where they are shorter than
// that. They follow from the tile alone.
template <class A>
struct RowBlocks {
    std::int64_t rows = 1;  // of a block
    std::int64_t piece;     // of a row

    FASTNORM_FN explicit RowBlocks(const Tile& tile) {
        const std::int64_t row = tile.inner1 - tile.inner0;
        if (row <= rows_block) {
            rows = rows_block / row;
            piece = row;
            return;
        }
        const std::int64_t pieces = (row + rows_block - 1) / rows_block;
        const std::int64_t share = (row + pieces - 1) / pieces;
        piece = (share + lanes<A> - 1) / lanes<A> * lanes<A>;
    }
};

// Where the walk of a reduction is fetch_bytes later. Rows are short, and hardware begins to fetch
// anew with each: a reduction fetches so far ahead.
template <class T>
struct Walk {
    static constexpr std::int64_t fetch_bytes = 4096;
    static constexpr std::int64_t far = fetch_bytes / static_cast<std::int64_t>(sizeof(T));

    const View& view;
    std::int64_t outer;
    std::int64_t skip;  // so many elements before where it is now, in the next row, or
                        // negative: further on in the same row

    // From element i of a row of the tile on.
    FASTNORM_FN Walk(const View& v, const Tile& tile, std::int64_t o, std::int64_t i)
        : view(v), outer(o), skip(0) {
        if (view.outer == 1) skip = -1;  // the next row is the next statistic's, side by side
        if (tile.stat1 - tile.stat0 > 1 || view.inner <= far || view.outer == 1) return;
        skip = i < view.inner - far ? -1 : view.inner - far;
    }

    FASTNORM_FN Ahead in(const Operand& operand) const {
        if (skip < 0) return {fetch_bytes};
        if (outer + 1 == view.outer) return {};
        return {outer_offset(view, operand, outer + 1) - outer_offset(view, operand, outer) -
                skip * static_cast<std::int64_t>(sizeof(T))};
    }
};

// Walks a tile for a reduction: block by block, in the order of memory.
template <class T, class Reduction>
FASTNORM_FN void reduce(const View& view, const Tile& tile, Reduction& reduction) {
    constexpr std::int64_t pack = lanes<accumulator_t<T>>;
    const auto least = [](std::int64_t a, std::int64_t b) { return a < b ? a : b; };
    const auto add = [&](std::int64_t o, std::int64_t from, std::int64_t to) {
        if (from >= to) return;
        reduction.at(Walk<T>(view, tile, o, from));
        for (std::int64_t s = tile.stat0; s < tile.stat1; ++s) reduction.add(o, s, from, to);
    };
    const bool single = tile.stat1 - tile.stat0 == 1;
    const RowBlocks<accumulator_t<T>> blocks(tile);
    for (std::int64_t block = tile.outer0; block < tile.outer1; block += blocks.rows) {
        const std::int64_t block_end = least(block + blocks.rows, tile.outer1);
        for (std::int64_t from = tile.inner0; from < tile.inner1; from += blocks.piece) {
            const std::int64_t to = least(from + blocks.piece, tile.inner1);
            // From here on the walk is in the next row fetch_bytes later.
            const std::int64_t rest =
                single && view.outer > 1 ? view.inner - Walk<T>::far - from : 0;
            const std::int64_t turn = rest > 0 ? from + (rest + pack - 1) / pack * pack : from;
            for (std::int64_t o = block; o < block_end; ++o) {
                add(o, from, least(turn, to));
                add(o, least(turn, to), to);
            }
            for (std::int64_t s = 0; s < tile.stat1 - tile.stat0; ++s) reduction.sums[s].fold();
        }
    }
}

// A map alone.
struct MapOnly {
    static constexpr std::int64_t longest = INT64_MAX;  // elements that are mapped at a time
    Ahead ahead_x = further_on;
    FASTNORM_FN void begin_row() {}
    FASTNORM_FN void advance_to(std::int64_t, std::int64_t, std::int64_t) {}
};

// A map with the reduction of another tile of the same shape interleaved, so that one reads from
// memory while the other writes to it. The sums are those of reduce(), bit for bit.
template <class T, class Reduction>
struct Interleaved {
    static constexpr Ahead ahead_x{};  // it was read for the sums of its own tile
    // Short enough that what the processor has in flight covers both, long enough to hide what a
    // piece costs: measured, 512 and 1024 bytes are slower.
    static constexpr std::int64_t longest = 768 / static_cast<std::int64_t>(sizeof(T));

    const View& view;
    const Tile& tile;    // that is reduced
    std::int64_t shift;  // of its statistics from the map's
    Reduction& reduction;
    RowBlocks<accumulator_t<T>> blocks;
    std::int64_t done = 0;  // of the row

    FASTNORM_FN Interleaved(const View& v, const Tile& mapped, const Tile& reduced, Reduction& r)
        : view(v), tile(reduced), shift(reduced.stat0 - mapped.stat0), reduction(r), blocks(tile) {}

    FASTNORM_FN void begin_row() { done = tile.inner0; }

    // Goes on to where the map is: element i of its row, in whole packs.
    FASTNORM_FN void advance_to(std::int64_t o, std::int64_t mapped_stat, std::int64_t i) {
        constexpr std::int64_t pack = lanes<accumulator_t<T>>;
        const std::int64_t s = mapped_stat + shift;
        const std::int64_t to = i == tile.inner1 ? i : i - (i - tile.inner0) % pack;
        while (done < to) {
            const std::int64_t past = (done - tile.inner0) % blocks.piece;
            const std::int64_t block_end = done - past + blocks.piece;
            const std::int64_t end = block_end < to ? block_end : to;
            reduction.at(Walk<T>(view, tile, o, done));
            reduction.add(o, s, done, end);
            done = end;
            const bool last_piece = end == block_end || end == tile.inner1;
            const bool last_row = (o + 1 - tile.outer0) % blocks.rows == 0 || o + 1 == tile.outer1;
            if (last_piece && last_row) reduction.sums[s - tile.stat0].fold();
        }
    }
};

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
