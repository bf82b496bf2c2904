// Statistics whose elements are not whole packs, but those of neighbouring ones together are: short
// runs (planes of 7 x 7, say), and columns, whose runs are one element. A block copies the rows
// that some statistics make up to shared memory, works on each chunk there as everywhere, writes
// results in the place of what they were made from, and copies them out.
#pragma once

#include "cuda/kernels.h"

namespace fastnorm::cuda {

// Where the packs of rows lie in shared memory, an image for each array.
//   rows      as in global memory: a statistic's elements are taken out of packs one by one.
//   columns   the packs of a group one behind the other, an odd number of them, so that as many
//             groups as there are banks for do not meet in one.
template <class T, int width>
struct Image {
    std::int64_t bytes_of_row, runs;

    FASTNORM_DEVICE std::int64_t pitch() const { return (runs | 1) * 16; }
    FASTNORM_DEVICE std::int64_t bytes() const {
        return width > 1 ? bytes_of_row / 16 * pitch() : runs * bytes_of_row;
    }
    FASTNORM_DEVICE std::int64_t of_pack(std::int64_t run, int pack) const {
        return width > 1 ? pack * pitch() + run * 16 : run * bytes_of_row + pack * 16;
    }
};

// Packs of a chunk in images: see FromGlobal.
template <class T, int width>
struct FromImage {
    static constexpr bool cheap = true;
    Image<T, width> image;
    char* images;
    std::int64_t bytes_before;  // the statistic's, in a row

    FASTNORM_DEVICE T* at(int array, const Position& position) const {
        char* const own = images + array * image.bytes();
        if constexpr (width > 1) {
            return reinterpret_cast<T*>(
                own + image.of_pack(position.run, static_cast<int>(bytes_before / 16)));
        } else {
            return reinterpret_cast<T*>(own + position.run * image.bytes_of_row + bytes_before +
                                        position.pack * 16);
        }
    }
    FASTNORM_DEVICE Pack<T> pack(const Operand&, int array, int, const Position& position,
                                 int elements) const {
        Pack<T> pack{};
        if constexpr (width > 1) {
            if (elements > 0) pack = *reinterpret_cast<const Pack<T>*>(at(array, position));
        } else {
#pragma unroll
            for (int e = 0; e < pack_elements<T>; ++e) {
                if (e < elements) pack.element[e] = at(array, position)[e];
            }
        }
        return pack;
    }
    FASTNORM_DEVICE Pack<T> more(const Operand& operand, int array, const Position& position,
                                 int elements) const {
        return pack(operand, array, 0, position, elements);
    }
    FASTNORM_DEVICE void put(const Operand&, int array, const Position& position, int elements,
                             const Pack<T>& pack) const {
        if constexpr (width > 1) {
            if (elements > 0) *reinterpret_cast<Pack<T>*>(at(array, position)) = pack;
        } else {
#pragma unroll
            for (int e = 0; e < pack_elements<T>; ++e) {
                if (e < elements) at(array, position)[e] = pack.element[e];
            }
        }
    }
};

template <class Pass>
struct Staged {
    using T = typename Pass::T;
    using A = typename Pass::A;
    static constexpr int width = Pass::width;
    static_assert(width > 1 || !Pass::whole);
    static constexpr const char* name = "staged";
    static constexpr int most_threads = width > 1 ? 256 : 512;  // many registers a statistic
    static constexpr int least_blocks = 1;

    Arguments args;
    Share share;  // a block has all tasks of several groups

    FASTNORM_DEVICE void operator()(const Block& block) const {
        const Rows& rows = args.rows;
        const Pass pass(block, args);
        const Tasks tasks = Tasks::of_several_stats(rows, share, block.index());
        auto* const coefficients = reinterpret_cast<Coefficients<A>*>(block.shared());
        const std::int64_t bytes_of_coefficients =
            (tasks.stats * sizeof(Coefficients<A>) + 15) / 16 * 16;
        auto* const partials = reinterpret_cast<Partial*>(block.shared() + bytes_of_coefficients);
        char* const images = reinterpret_cast<char*>(partials + tasks.stats * rows.chunks);
        const std::int64_t bytes_of_stat = rows.inner * static_cast<std::int64_t>(sizeof(T));
        const Image<T, width> image{tasks.stats * bytes_of_stat, rows.runs};
        const auto from_image = [&](std::int64_t stat) {
            return FromImage<T, width>{image, images, (stat - tasks.stat0) * bytes_of_stat};
        };
        // Calls f(where a pack lies in the image, and where in global memory).
        const auto each_pack = [&](int array, const Operand& operand, auto&& f) {
            const auto packs = static_cast<int>(image.bytes_of_row / 16);
            const int run_step = block.threads() / packs, pack_step = block.threads() % packs;
            std::int64_t run = block.thread() / packs;
            int pack = block.thread() % packs;
            while (run < rows.runs) {
                f(images + array * image.bytes() + image.of_pack(run, pack),
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

        for_tasks(block, rows, tasks, [&](std::int64_t, std::int64_t stat, std::int64_t chunk) {
            const typename Pass::Chunk lane(block, rows, stat, chunk);
            Partial result[width];
            pass.reduce(block, lane, coefficients + (stat - tasks.stat0), stat, chunk,
                        from_image(stat), result);
            for_partials(block, rows, stat, result, [&](std::int64_t s, const Partial& partial) {
                partials[(s - tasks.stat0) * rows.chunks + chunk] = partial;
            });
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
            const typename Pass::Chunk lane(block, rows, stat, chunk);
            pass.map(block, lane, coefficients + (stat - tasks.stat0), stat, chunk,
                     from_image(stat));
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
