// A KernelTable from the kernels.
#pragma once

#include "cuda/backward.h"
#include "cuda/forward.h"
#include "cuda/kernels.h"
#include "cuda/staged.h"
#include "cuda/table.h"

namespace fastnorm::cuda {

template <template <class, bool, bool> class Pass, class T, bool smooth>
void launch_on_chip(const char* op, const Arguments& args, const Share& share, bool in_global,
                    const Shape& shape, Stream stream) {
    launch(op, OnChip<Pass<T, true, smooth>>{args, share, in_global}, shape, stream);
}

template <template <class, bool, bool> class Pass, class T, bool whole, bool smooth>
void launch_reduce(const char* op, const Arguments& args, const Share& share,
                   std::int64_t soon_from, const Shape& shape, Stream stream) {
    launch(op, Reduce<Pass<T, whole, smooth>>{args, share, soon_from}, shape, stream);
}

template <template <class, bool, bool> class Pass, class T, bool whole, bool smooth>
void launch_map(const char* op, const Arguments& args, const Share& share, const Shape& shape,
                Stream stream) {
    launch(op, Map<Pass<T, whole, smooth>>{args, share}, shape, stream);
}

template <template <class, bool, bool> class Pass, class T, bool smooth>
void launch_staged(const char* op, const Arguments& args, const Share& share, const Shape& shape,
                   Stream stream) {
    launch(op, Staged<Pass<T, false, smooth>>{args, share}, shape, stream);
}

template <class T>
constexpr KernelTable make_table() {
    using A = accumulator_t<T>;
    return {
        {{launch_on_chip<Forward, T, false>, launch_on_chip<Forward, T, true>},
         {launch_on_chip<Backward, T, false>, launch_on_chip<Backward, T, true>}},
        // Moments are taken before the activation.
        {{{launch_reduce<Forward, T, false, false>, launch_reduce<Forward, T, false, false>},
          {launch_reduce<Forward, T, true, false>, launch_reduce<Forward, T, true, false>}},
         {{launch_reduce<Backward, T, false, false>, launch_reduce<Backward, T, false, true>},
          {launch_reduce<Backward, T, true, false>, launch_reduce<Backward, T, true, true>}}},
        {{{launch_map<Forward, T, false, false>, launch_map<Forward, T, false, true>},
          {launch_map<Forward, T, true, false>, launch_map<Forward, T, true, true>}},
         {{launch_map<Backward, T, false, false>, launch_map<Backward, T, false, true>},
          {launch_map<Backward, T, true, false>, launch_map<Backward, T, true, true>}}},
        {{launch_staged<Forward, T, false>, launch_staged<Forward, T, true>},
         {launch_staged<Backward, T, false>, launch_staged<Backward, T, true>}},
        OnChip<Forward<T, true, false>>::bytes_of_stat,
        OnChip<Forward<T, true, false>>::slot_bytes,
        sizeof(Coefficients<A>),
    };
}

}  // namespace fastnorm::cuda
