// A store of OnChip for statistics whose elements are not whole packs, but those of neighbouring
// ones together are: planes of 7 x 7, say. A block copies the rows that its statistics make up to
// shared memory, writes results in the place of what they were made from, and copies them out.
#pragma once

#include "cuda/share.h"

namespace fastnorm::cuda {

// 16 bytes of memory, wherever they begin, are in two aligned packs: those behind `skipped` bytes.
struct alignas(16) Words {
    std::uint32_t word[4];
};
FASTNORM_DEVICE Words behind(int skipped, const Words& a, const Words& b) {
    std::uint32_t w[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        w[i] = a.word[i];
        w[4 + i] = b.word[i];
    }
#pragma unroll
    for (int i = 0; i < 6; ++i) w[i] = (skipped & 8) != 0 ? w[i + 2] : w[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) w[i] = (skipped & 4) != 0 ? w[i + 1] : w[i];
    Words result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const std::uint64_t two = std::uint64_t{w[i + 1]} << 32 | w[i];
        result.word[i] = static_cast<std::uint32_t>(two >> (skipped % 4 * 8));
    }
    return result;
}

// Packs of a chunk in images of the runs, one for each array. in_place: results are written there
// while others read, so that no lane may look at more than its own elements.
template <class T, bool in_place>
struct FromImage {
    static constexpr bool cheap = true;
    char* images;
    int bytes_of_image, bytes_of_row;
    int bytes_before;  // the statistic's, in a row
    std::int64_t run0;

    FASTNORM_DEVICE T* at(int array, const Position& position) const {
        return reinterpret_cast<T*>(images + array * bytes_of_image +
                                    static_cast<int>(position.run - run0) * bytes_of_row +
                                    bytes_before + static_cast<int>(position.pack) * 16);
    }
    FASTNORM_DEVICE Pack<T> pack(const Operand&, int array, int, const Position& position,
                                 int elements) const {
        Pack<T> pack{};
        if (elements == 0) return pack;
        const T* const first = at(array, position);
        if constexpr (in_place) {
#pragma unroll
            for (int e = 0; e < pack_elements<T>; ++e) {
                if (e < elements) pack.element[e] = first[e];
            }
            return pack;
        }
        const auto skipped = static_cast<int>((reinterpret_cast<const char*>(first) - images) % 16);
        const auto* const aligned =
            reinterpret_cast<const Words*>(reinterpret_cast<const char*>(first) - skipped);
        Words next{};
        if (skipped + elements * static_cast<int>(sizeof(T)) > 16) next = aligned[1];
        pack = bit_copy<Pack<T>>(behind(skipped, aligned[0], next));
#pragma unroll
        for (int e = 0; e < pack_elements<T>; ++e) {
            if (e >= elements) pack.element[e] = T{};
        }
        return pack;
    }
    FASTNORM_DEVICE Pack<T> more(const Operand& operand, int array, const Position& position,
                                 int elements) const {
        return pack(operand, array, 0, position, elements);
    }
    FASTNORM_DEVICE void put(const Operand&, int array, const Position& position, int elements,
                             const Pack<T>& pack) const {
#pragma unroll
        for (int e = 0; e < pack_elements<T>; ++e) {
            if (e < elements) at(array, position)[e] = pack.element[e];
        }
    }
};

template <class Pass>
struct Images {
    using T = typename Pass::T;
    using Chunk = typename Pass::Chunk;
    static_assert(Pass::width == 1 && !Pass::whole);
    static constexpr const char* name = "staged";
    static constexpr bool of_lanes = false;

    const Block& block;
    const Pass& pass;
    char* memory;
    std::int64_t stat0, run0;
    int runs, bytes_of_stat, bytes_of_row, bytes_of_image;  // as many as shared memory has

    FASTNORM_DEVICE Images(const Block& block, const Rows& rows, const Pass& pass, const Tile& tile,
                           const OfBlock<Pass>& own, char* memory)
        : block(block),
          pass(pass),
          memory(memory),
          stat0(own.slot0),
          run0(runs_before(rows, tile.chunk0)),
          runs(static_cast<int>(runs_before(rows, tile.chunk0 + tile.chunks) - run0)),
          bytes_of_stat(static_cast<int>(rows.inner) * static_cast<int>(sizeof(T))),
          bytes_of_row(static_cast<int>(own.stats) * bytes_of_stat),
          bytes_of_image(runs * bytes_of_row) {}

    FASTNORM_DEVICE FromImage<T, false> source(const Chunk& lane, std::int64_t) const {
        return from_image<false>(lane);
    }
    FASTNORM_DEVICE FromImage<T, true> source_of_map(const Chunk& lane, std::int64_t) const {
        return from_image<true>(lane);
    }
    FASTNORM_DEVICE void load(const Rows& rows, const Tile&) const {
        for (int k = 0; k < pass.arrays().of_map; ++k) {
            each_pack(rows, k, pass.array(k),
                      [&](char* to, const char* from) { block.copy(to, from); });
        }
    }
    FASTNORM_DEVICE void store(const Rows& rows, const Tile&) const {
        block.sync();
        for (int k = 0; k < 2; ++k) {
            const Operand& result = pass.result(k);
            if (!result) continue;
            each_pack(rows, k, result, [&](const char* from, char* to) {
                block.store(to, *reinterpret_cast<const Pack<T>*>(from));
            });
        }
    }

  private:
    template <bool in_place>
    FASTNORM_DEVICE FromImage<T, in_place> from_image(const Chunk& lane) const {
        const auto before = static_cast<int>(lane.stat() - stat0) * bytes_of_stat;
        return {memory, bytes_of_image, bytes_of_row, before, run0};
    }

    // Calls f(where a pack lies in the image, and where in global memory).
    template <class F>
    FASTNORM_DEVICE void each_pack(const Rows& rows, int array, const Operand& operand,
                                   F&& f) const {
        const int packs = bytes_of_row / 16;
        if (packs == 0) return;  // no statistics
        const int run_step = block.threads() / packs, pack_step = block.threads() % packs;
        int run = block.thread() / packs;
        int pack = block.thread() % packs;
        while (run < runs) {
            f(memory + array * bytes_of_image + run * bytes_of_row + pack * 16,
              operand.data + offset_of<false>(rows, operand, stat0, run0 + run) + pack * 16);
            run += run_step;
            pack += pack_step;
            if (pack >= packs) {
                pack -= packs;
                ++run;
            }
        }
    }
};

}  // namespace fastnorm::cuda
