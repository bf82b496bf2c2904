// Short runs that do not divide into packs (planes of 7 x 7, say): the runs of a few neighbouring
// statistics are one contiguous row, which does. A block copies such rows to shared memory as they
// are, works on each statistic's elements there as the rows traversal does, writes the results in
// the place of what they were made from, and copies them out.
#pragma once

#include "cuda/kernels.h"

namespace fastnorm::cuda {

// An image of rows in shared memory, of each array: see FromGlobal.
template <class T>
struct FromImage {
    static constexpr bool cheap = true;
    char* images;
    std::int64_t bytes_of_image, bytes_of_row, bytes_before;  // the statistic's, in a row

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
    using A = typename Pass::A;
    static_assert(!Pass::whole);
    static constexpr const char* name = "staged";
    static constexpr int most_threads = 512;
    static constexpr int least_blocks = 1;

    Arguments args;
    Share share;  // a block has all tasks of several statistics

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const Pass pass(block, args);
        const Tasks tasks = Tasks::of_several_stats(rows, share, block.index());
        auto* const coefficients = reinterpret_cast<Coefficients<A>*>(block.shared());
        const std::int64_t bytes_of_coefficients =
            (tasks.stats * sizeof(Coefficients<A>) + 15) / 16 * 16;
        auto* const partials = reinterpret_cast<Partial*>(block.shared() + bytes_of_coefficients);
        char* const images = reinterpret_cast<char*>(partials + share.tasks_of_block);
        const std::int64_t bytes_of_stat = rows.inner * static_cast<std::int64_t>(sizeof(T));
        const std::int64_t bytes_of_row = tasks.stats * bytes_of_stat;
        const std::int64_t bytes_of_image = rows.runs * bytes_of_row;
        const auto image_of = [&](std::int64_t stat) {
            return FromImage<T>{images, bytes_of_image, bytes_of_row,
                                (stat - tasks.stat0) * bytes_of_stat};
        };
        // Calls f(where a pack lies in the image, and where in global memory).
        const auto each_pack = [&](int array, const Operand& operand, auto&& f) {
            const auto packs = static_cast<int>(bytes_of_row / 16);
            const int run_step = block.threads() / packs, pack_step = block.threads() % packs;
            std::int64_t run = block.thread() / packs;
            int pack = block.thread() % packs;
            while (run < rows.runs) {
                f(images + array * bytes_of_image + run * bytes_of_row + pack * 16,
                  operand.data + offset_of<false>(rows, operand, tasks.stat0, run) + pack * 16);
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
        for (std::int64_t s = block.thread(); s < tasks.stats; s += block.threads()) {
            pass.prepare(coefficients[s], tasks.stat0 + s);
        }
        block.wait_for_copies();
        block.sync();

        for_tasks(
            block, rows, tasks, [&](std::int64_t task, std::int64_t stat, std::int64_t chunk) {
                const Lane<T, false> lane(block, rows, stat, chunk);
                const Partial partial = pass.reduce(block, lane, coefficients[stat - tasks.stat0],
                                                    stat, chunk, image_of(stat));
                if (block.lane() == 0) partials[task - tasks.first] = partial;
            });
        block.sync();
        for (std::int64_t s = block.warp(); s < tasks.stats; s += block.warps()) {
            const std::int64_t stat = tasks.stat0 + s;
            const Partial merged = pass.merge(
                block, [&](std::int64_t chunk) { return partials[s * rows.chunks + chunk]; });
            const Partial finished = pass.finish(merged, stat, block.lane() == 0);
            if (block.lane() == 0) pass.set(coefficients[s], stat, finished);
        }
        block.sync();
        for_tasks(block, rows, tasks, [&](std::int64_t, std::int64_t stat, std::int64_t chunk) {
            const Lane<T, false> lane(block, rows, stat, chunk);
            pass.map(block, lane, coefficients[stat - tasks.stat0], stat, chunk, image_of(stat));
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
