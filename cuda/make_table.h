// A KernelTable from the kernels.
#pragma once

#include "cuda/backward.h"
#include "cuda/forward.h"
#include "cuda/kernels.h"
#include "cuda/staged.h"
#include "cuda/table.h"

namespace fastnorm::cuda {

template <class Kernel>
void launch_kernel_of(const char* op, const Arguments& args, const Share& share, const Shape& shape,
                      Stream stream) {
    launch(op, Kernel{args, share}, shape, stream);
}

template <template <class, bool, bool> class Pass, class T, bool smooth>
inline constexpr KernelTable::Launcher on_chip = launch_kernel_of<OnChip<Pass<T, true, smooth>>>;
template <template <class, bool, bool> class Pass, class T, bool smooth>
inline constexpr KernelTable::Launcher staged = launch_kernel_of<Staged<Pass<T, false, smooth>>>;
template <template <class, bool, bool> class Pass, class T, bool whole, bool smooth>
inline constexpr KernelTable::Launcher reduce = launch_kernel_of<Reduce<Pass<T, whole, smooth>>>;
template <template <class, bool, bool> class Pass, class T, bool whole, bool smooth>
inline constexpr KernelTable::Launcher map = launch_kernel_of<Map<Pass<T, whole, smooth>>>;

template <class T>
constexpr KernelTable make_table() {
    return {
        {{on_chip<Forward, T, false>, on_chip<Forward, T, true>},
         {on_chip<Backward, T, false>, on_chip<Backward, T, true>}},
        {{staged<Forward, T, false>, staged<Forward, T, true>},
         {staged<Backward, T, false>, staged<Backward, T, true>}},
        // Moments are taken before the activation.
        {{{reduce<Forward, T, false, false>, reduce<Forward, T, false, false>},
          {reduce<Forward, T, true, false>, reduce<Forward, T, true, false>}},
         {{reduce<Backward, T, false, false>, reduce<Backward, T, false, true>},
          {reduce<Backward, T, true, false>, reduce<Backward, T, true, true>}}},
        {{{map<Forward, T, false, false>, map<Forward, T, false, true>},
          {map<Forward, T, true, false>, map<Forward, T, true, true>}},
         {{map<Backward, T, false, false>, map<Backward, T, false, true>},
          {map<Backward, T, true, false>, map<Backward, T, true, true>}}},
        OnChip<Forward<T, true, false>>::bytes_of_stat,
        OnChip<Forward<T, true, false>>::slot_bytes,
        sizeof(Coefficients<accumulator_t<T>>),
    };
}

}  // namespace fastnorm::cuda
