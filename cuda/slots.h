// A store of OnChip for whole packs: each lane copies its own to shared memory, and writes its
// results where they belong.
#pragma once

#include "cuda/share.h"

namespace fastnorm::cuda {

// What each lane has copied to shared memory for itself; all else is in global memory.
template <class T, int width>
struct FromShared : FromGlobal<T, true, width> {
    static constexpr bool cheap = true;
    static constexpr int pack_stride = warp_size * 16;
    char* slots;  // of the lane: for each array, its packs
    int array_stride;

    FASTNORM_DEVICE char* slot(int array, int i) const {
        return slots + array * array_stride + i * pack_stride;
    }
    FASTNORM_DEVICE Pack<T> pack(const Operand&, int array, int i, const Position&,
                                 int elements) const {
        return elements == 0 ? Pack<T>{} : *reinterpret_cast<const Pack<T>*>(slot(array, i));
    }
    FASTNORM_DEVICE void keep(int array, int i, const Pack<T>& pack) const {
        *reinterpret_cast<Pack<T>*>(slot(array, i)) = pack;
    }
};

template <class Pass>
struct Slots {
    using T = typename Pass::T;
    using Chunk = typename Pass::Chunk;
    using Source = FromShared<T, Pass::width>;
    static_assert(Pass::whole);
    static constexpr const char* name = "on_chip";
    static constexpr bool of_lanes = true;  // what a lane has copied is read by no other

    const Block& block;
    const Pass& pass;
    char* memory;
    int arrays, slot_bytes;  // of an array, a task

    FASTNORM_DEVICE Slots(const Block& block, const Rows& rows, const Pass& pass, const Tile&,
                          const OfBlock<Pass>&, char* memory)
        : block(block),
          pass(pass),
          memory(memory),
          arrays(pass.arrays().of_reduction),
          slot_bytes(rows.slot_bytes()) {}

    FASTNORM_DEVICE Source source(const Chunk& lane, std::int64_t task) const {
        return {{block, lane, Reuse::none},
                memory + task * arrays * slot_bytes + block.lane() * 16,
                slot_bytes};
    }
    FASTNORM_DEVICE Source source_of_map(const Chunk& lane, std::int64_t task) const {
        return source(lane, task);
    }
    FASTNORM_DEVICE void load(const Rows& rows, const Tile& tile) const {
        tile.each(block, [&](std::int64_t group, std::int64_t chunk, std::int64_t task) {
            const Chunk lane(block, rows, group, chunk);
            const Source to = source(lane, task);
            lane.template in_batches<2>(
                [&](int, int i, const Position& at, int elements) {
                    if (elements == 0) return;
                    for (int k = 0; k < arrays; ++k) {
                        block.copy(to.slot(k, i), lane.address(pass.array(k), at));
                    }
                },
                [](int, int, const Position&, int) {});
        });
    }
    FASTNORM_DEVICE void store(const Rows&, const Tile&) const {}
};

}  // namespace fastnorm::cuda
