// How a warp walks over a chunk of a group: in packs of 16 bytes, neighbouring lanes on
// neighbouring packs, until each has 32 elements of every statistic of its own. Chunks follow from
// the shape alone, and so do the bits of their sums, whatever block works on them and however it
// reaches the memory.
#pragma once

#include <cstdint>

#include "cuda/arguments.h"
#include "cuda/block.h"

namespace fastnorm::cuda {

// A statistic's share of a warp: so many lanes.
template <int width>
FASTNORM_DEVICE int lanes_of_stat(const Rows& rows) {
    return width > 1 ? rows.lanes : warp_size;
}
// Statistics of a group.
template <int width>
FASTNORM_DEVICE int stats_of_group(const Rows& rows) {
    return width > 1 ? rows.across * width : 1;
}

// The batch index of a group, and the number of a statistic of it; -1: there are not so many.
FASTNORM_DEVICE std::int64_t batch_of(const Rows& rows, std::int64_t group) {
    return rows.groups == rows.groups_of_batch ? 0 : group / rows.groups_of_batch;
}
template <int width>
FASTNORM_DEVICE std::int64_t stat_of(const Rows& rows, std::int64_t group, std::int64_t s) {
    if constexpr (width == 1) return group;
    const std::int64_t batch = batch_of(rows, group);
    const std::int64_t stat =
        (group - batch * rows.groups_of_batch) * stats_of_group<width>(rows) + s;
    return stat < rows.stat ? batch * rows.stat + stat : -1;
}

// Where a pack of a statistic lies; packs are numbered run by run.
struct Position {
    std::int64_t run, pack;

    template <int width>
    FASTNORM_DEVICE static Position of(const Rows& rows, std::int64_t pack) {
        if (width > 1) return {pack, 0};  // a run is one pack
        const std::int64_t run = pack / rows.packs;
        return {run, pack - run * rows.packs};
    }
    FASTNORM_DEVICE void advance(const Rows& rows) {
        run += rows.run_step;
        pack += rows.pack_step;
        if (pack >= rows.packs) {
            pack -= rows.packs;
            ++run;
        }
    }
};

// Bytes from the start of an operand to a run of a statistic. nested: outer may be several
// dimensions.
template <bool nested>
FASTNORM_DEVICE std::int64_t offset_of(const Rows& rows, const Operand& operand, std::int64_t stat,
                                       std::int64_t run) {
    std::int64_t offset = 0;
    if (rows.stats != rows.stat) {
        offset = stat / rows.stat * operand.batch_stride;
        stat %= rows.stat;
    }
    offset += stat * operand.stat_stride;
    if constexpr (nested) {
#pragma unroll 1
        for (int d = rows.outer_dims - 1; d > 0; --d) {
            offset += (run % rows.outer_extent[d]) * operand.outer_stride[d];
            run /= rows.outer_extent[d];
        }
    }
    return offset + run * operand.outer_stride[0];
}

// The runs before a chunk, where it is of whole ones or of a piece.
FASTNORM_DEVICE std::int64_t runs_before(const Rows& rows, std::int64_t chunk) {
    const std::int64_t runs =
        rows.chunks_of_run > 1 ? chunk / rows.chunks_of_run : chunk * rows.runs_of_chunk;
    return runs < rows.runs ? runs : rows.runs;
}

// How many of a statistic's packs lie before a chunk, and how many of its elements.
template <class T, bool whole, int width>
FASTNORM_DEVICE std::int64_t packs_before(const Rows& rows, std::int64_t chunk) {
    std::int64_t packs = chunk * (lane_packs<T, width> * lanes_of_stat<width>(rows));
    if (!whole && width == 1 && rows.chunks_of_run > 0) {
        const std::int64_t runs = runs_before(rows, chunk);
        packs = runs * rows.packs;
        if (rows.chunks_of_run > 1) {
            packs += (chunk - runs * rows.chunks_of_run) * rows.packs_of_piece;
        }
    }
    const std::int64_t all = rows.runs * rows.packs;
    return packs < all ? packs : all;
}
template <class T, bool whole, int width>
FASTNORM_DEVICE std::int64_t elements_before(const Rows& rows, std::int64_t chunk) {
    const std::int64_t packs = packs_before<T, whole, width>(rows, chunk);
    if (width > 1) return packs;
    if (whole) return packs * pack_elements<T>;
    const auto at = Position::of<width>(rows, packs);
    return at.run * rows.inner + at.pack * pack_elements<T>;
}

template <class T, bool whole, int width>
FASTNORM_DEVICE double elements_of_chunks(const Rows& rows, std::int64_t chunk,
                                          std::int64_t count = 1) {
    return static_cast<double>(elements_before<T, whole, width>(rows, chunk + count) -
                               elements_before<T, whole, width>(rows, chunk));
}

// A pack of global memory, or so many elements of one. whole: it is whole and aligned, one access;
// otherwise each element is.
template <class T, bool whole>
FASTNORM_DEVICE Pack<T> load_pack(const Block& block, const char* p, int elements, Reuse reuse) {
    Pack<T> pack{};
    if (elements == 0) return pack;
    if constexpr (whole) {
        pack = block.template load<T>(p, reuse);
    } else {
#pragma unroll
        for (int e = 0; e < pack_elements<T>; ++e) {
            if (e < elements) {
                pack.element[e] = block.load_element(reinterpret_cast<const T*>(p) + e);
            }
        }
    }
    return pack;
}

template <class T, bool whole>
FASTNORM_DEVICE void store_pack(const Block& block, char* p, int elements, const Pack<T>& pack) {
    if (elements == 0) return;
    if constexpr (whole) {
        block.store(p, pack);
    } else {
#pragma unroll
        for (int e = 0; e < pack_elements<T>; ++e) {
            if (e < elements) block.store_element(reinterpret_cast<T*>(p) + e, pack.element[e]);
        }
    }
}

// Rounded to T.
template <class T>
FASTNORM_DEVICE Pack<T> sum_of_packs(const Pack<T>& a, const Pack<T>& b) {
    Pack<T> sum;
#pragma unroll
    for (int e = 0; e < pack_elements<T>; ++e) {
        narrow(widen(a.element[e]) + widen(b.element[e]), sum.element[e]);
    }
    return sum;
}

// The share of one lane in a chunk. whole: every pack is whole and aligned, so that it is one
// access, and outer is one dimension; otherwise each element is an access.
template <class T, bool whole, int width>
class Lane {
  public:
    static constexpr int packs = lane_packs<T, width>;

    FASTNORM_DEVICE Lane(const Block& block, const Rows& rows, std::int64_t group,
                         std::int64_t chunk)
        : rows_(rows),
          group_(group),
          chunk_(chunk),
          column_(width > 1 ? block.lane() % rows.across : 0) {
        const std::int64_t batch = batch_of(rows, group);
        const std::int64_t first =
            width > 1 ? (group - batch * rows.groups_of_batch) * stats_of_group<width>(rows) +
                            column_ * width
                      : group - batch * rows.stat;
        stat_ = batch * rows.stat + first;
        stats_left_ = rows.stat - first;
        const int lanes = lanes_of_stat<width>(rows);
        const int lane = width > 1 ? block.lane() / rows.across : block.lane();
        const std::int64_t before = packs_before<T, whole, width>(rows, chunk);
        const std::int64_t behind = packs_before<T, whole, width>(rows, chunk + 1);
        first_ = Position::of<width>(rows, before + lane);
        const int own = static_cast<int>(behind - before) - lane;
        own_packs_ = own > 0 && stats_left_ > 0 ? (own + lanes - 1) / lanes : 0;
    }

    FASTNORM_DEVICE std::int64_t chunk() const { return chunk_; }
    FASTNORM_DEVICE std::int64_t task() const { return group_ * rows_.chunks + chunk_; }
    // The first statistic of the lane's packs, and whether there is the s-th from it on.
    FASTNORM_DEVICE std::int64_t stat() const { return stat_; }
    FASTNORM_DEVICE bool has_stat(int s) const { return s < stats_left_; }
    // Its number if all groups are full.
    FASTNORM_DEVICE std::int64_t slot() const {
        return group_ * stats_of_group<width>(rows_) + column_ * width;
    }

    // Calls f(i, position, how many elements of the pack there are) for each pack.
    template <class F>
    FASTNORM_DEVICE void each(F&& f) const {
        Position at = first_;
#pragma unroll
        for (int i = 0; i < packs; ++i) {
            f(i, at, elements(i, at));
            at.advance(rows_);
        }
    }

    // Calls f(position, elements) for the first one.
    template <class F>
    FASTNORM_DEVICE void first(F&& f) const {
        f(first_, elements(0, first_));
    }

    // Calls load(b, i, position, elements) for packs i on which b counts from 0 to batch, then
    // use() with the same, and so on to the last pack: those of a batch are on their way together.
    template <int batch, class Load, class Use>
    FASTNORM_DEVICE void in_batches(Load&& load, Use&& use) const {
        static_assert(packs % batch == 0);
        Position at = first_;
#pragma unroll 1
        for (int from = 0; from < packs; from += batch) {
            Position again = at;
#pragma unroll
            for (int b = 0; b < batch; ++b) {
                load(b, from + b, at, elements(from + b, at));
                at.advance(rows_);
            }
#pragma unroll
            for (int b = 0; b < batch; ++b) {
                use(b, from + b, again, elements(from + b, again));
                again.advance(rows_);
            }
        }
    }

    FASTNORM_DEVICE char* address(const Operand& operand, const Position& at) const {
        return operand.data + offset_of<!whole>(rows_, operand, stat(), at.run) + at.pack * 16;
    }

    FASTNORM_DEVICE Pack<T> load(const Block& block, const Operand& operand, const Position& at,
                                 int elements, Reuse reuse) const {
        return load_pack<T, whole>(block, address(operand, at), elements, reuse);
    }

    FASTNORM_DEVICE void store(const Block& block, const Operand& operand, const Position& at,
                               int elements, const Pack<T>& pack) const {
        store_pack<T, whole>(block, address(operand, at), elements, pack);
    }

  private:
    FASTNORM_DEVICE int elements(int i, const Position& at) const {
        if (i >= own_packs_) return 0;
        if (whole) return pack_elements<T>;
        const std::int64_t rest =
            width > 1 ? stats_left_ : rows_.inner - at.pack * pack_elements<T>;
        return rest > pack_elements<T> ? pack_elements<T> : static_cast<int>(rest);
    }

    const Rows& rows_;
    std::int64_t group_, chunk_;
    std::int64_t stat_, stats_left_;
    int column_;
    Position first_;
    int own_packs_;
};

}  // namespace fastnorm::cuda
