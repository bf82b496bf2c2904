// Statistics whose elements are not whole packs, but those of neighbouring ones together are: short
// runs, planes of 7 x 7, say. A block copies the rows that some statistics make up to shared
// memory, works on each chunk there as everywhere, writes results in the place of what they were
// made from, and copies them out.
#pragma once

#include "cuda/kernels.h"

namespace fastnorm::cuda {

// Packs of a chunk in images of the rows, one for each array: see FromGlobal. A statistic's
// elements are taken out of aligned packs one by one.
template <class T>
struct FromImage {
    static constexpr bool cheap = true;
    char* images;
    std::int64_t bytes_of_image, bytes_of_row;
    std::int64_t bytes_before;  // the statistic's, in a row

    FASTNORM_DEVICE T* at(int array, const Position& position) const {
        return reinterpret_cast<T*>(images + array * bytes_of_image + position.run * bytes_of_row +
                                    bytes_before + position.pack * 16);
    }
    FASTNORM_DEVICE Pack<T> pack(const Operand&, int array, int, const Position& position,
                                 int elements) const {
        Pack<T> pack{};
#pragma unroll
        for (int e = 0; e < pack_elements<T>; ++e) {
            if (e < elements) pack.element[e] = at(array, position)[e];
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
struct Staged {
    using T = typename Pass::T;
    static_assert(Pass::width == 1 && !Pass::whole);
    static constexpr const char* name = "staged";
    static constexpr int most_threads = 384;
    static constexpr int least_blocks = 1;

    Arguments args;
    Share share;  // a block has all tasks of several statistics

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const Pass pass(block, args);
        const Tasks tasks = Tasks::of_several_groups(rows.chunks, share, block.index());
        const OfBlock<Pass> own(block, rows, tasks);
        auto* const partials = reinterpret_cast<Partial*>(own.rest(block));
        char* const images = reinterpret_cast<char*>(partials + tasks.groups * rows.chunks);
        const std::int64_t bytes_of_stat = rows.inner * static_cast<std::int64_t>(sizeof(T));
        const std::int64_t bytes_of_row = own.stats * bytes_of_stat;
        const std::int64_t bytes_of_image = rows.runs * bytes_of_row;
        const auto from_image = [&](const typename Pass::Chunk& lane) {
            return FromImage<T>{images, bytes_of_image, bytes_of_row,
                                (lane.stat() - own.stat0) * bytes_of_stat};
        };
        // Calls f(where a pack lies in the image, and where in global memory).
        const auto each_pack = [&](int array, const Operand& operand, auto&& f) {
            const auto packs = static_cast<int>(bytes_of_row / 16);
            const int run_step = block.threads() / packs, pack_step = block.threads() % packs;
            std::int64_t run = block.thread() / packs;
            int pack = block.thread() % packs;
            while (run < rows.runs) {
                f(images + array * bytes_of_image + run * bytes_of_row + pack * 16,
                  operand.data + offset_of<false>(rows, operand, own.stat0, run) + pack * 16);
                run += run_step;
                pack += pack_step;
                if (pack >= packs) {
                    pack -= packs;
                    ++run;
                }
            }
        };

        for (int k = 0; k < pass.arrays_of_map(); ++k) {
            each_pack(k, pass.array(k), [&](char* to, const char* from) { block.copy(to, from); });
        }
        own.each(block, rows, [&](auto& of, std::int64_t stat) { pass.prepare(of, stat); });
        block.wait_for_copies();
        block.sync();

        tasks.each(block, [&](std::int64_t group, std::int64_t chunk) {
            const typename Pass::Chunk lane(block, rows, group, chunk);
            const Partial partial = pass.reduce(block, lane, own.of(lane), from_image(lane));
            if (block.lane() == 0) partials[lane.task() - tasks.first] = partial;
        });
        block.sync();
        if (rows.chunks_of_part > 1) {
            gather(block, args, share, tasks, own, partials);
            block.sync();
        }
        own.each_of_warp(block, rows, [&](auto& of, std::int64_t stat, std::int64_t s) {
            const Partial merged = pass.merge(block, [&](std::int64_t part) {
                return partials[s * rows.chunks + part * rows.chunks_of_part];
            });
            const Partial finished = pass.finish(merged, stat, block.lane() == 0);
            if (block.lane() == 0) pass.set(of, stat, finished);
        });
        block.sync();
        tasks.each(block, [&](std::int64_t group, std::int64_t chunk) {
            const typename Pass::Chunk lane(block, rows, group, chunk);
            pass.map(block, lane, own.of(lane), from_image(lane));
        });
        block.sync();
        for (int k = 0; k < 2; ++k) {
            const Operand& result = pass.result(k);
            if (!result) continue;
            each_pack(k, result, [&](const char* from, char* to) {
                block.store(to, *reinterpret_cast<const Pack<T>*>(from));
            });
        }
    }
};

}  // namespace fastnorm::cuda
