// A KernelTable from the kernels.
#pragma once

#include "cuda/backward.h"
#include "cuda/forward.h"
#include "cuda/kernels.h"
#include "cuda/on_chip.h"
#include "cuda/parameter_sums.h"
#include "cuda/table.h"

namespace fastnorm::cuda {

template <class Kernel>
void launch_kernel_of(const char* op, const Arguments& args, const Share& share, const Shape& shape,
                      Stream stream) {
    launch(op, Kernel{args, share}, shape, stream);
}

// The kernels of one direction and traversal. smooth_reduction: whether what is reduced depends on
// the activation.
template <template <class, bool, bool, int, bool> class Pass, class T, int width,
          bool smooth_reduction, bool features = false>
constexpr KernelTable::OfTraversal kernels_of() {
    return {{launch_kernel_of<OnChip<Pass<T, true, false, width, features>, Slots>>,
             launch_kernel_of<OnChip<Pass<T, true, true, width, features>, Slots>>},
            {{launch_kernel_of<Reduce<Pass<T, false, false, width, features>>>,
              launch_kernel_of<Reduce<Pass<T, false, smooth_reduction, width, features>>>},
             {launch_kernel_of<Reduce<Pass<T, true, false, width, features>>>,
              launch_kernel_of<Reduce<Pass<T, true, smooth_reduction, width, features>>>}},
            {{launch_kernel_of<Map<Pass<T, false, false, width, features>>>,
              launch_kernel_of<Map<Pass<T, false, true, width, features>>>},
             {launch_kernel_of<Map<Pass<T, true, false, width, features>>>,
              launch_kernel_of<Map<Pass<T, true, true, width, features>>>}}};
}

template <class T>
constexpr KernelTable::Launcher on_chip_with_parameters() {
    if constexpr (sizeof(T) == sizeof(double)) {
        return nullptr;
    } else {
        return launch_kernel_of<OnChip<Backward<T, true, false, 1, true>, Slots, true>>;
    }
}

template <class T>
constexpr KernelTable make_table() {
    constexpr int width = pack_elements<T>;
    return {
        {{kernels_of<Forward, T, 1, false>(), kernels_of<Forward, T, width, false>(),
          kernels_of<Forward, T, 1, false, true>()},
         {kernels_of<Backward, T, 1, true>(), kernels_of<Backward, T, width, true>(),
          kernels_of<Backward, T, 1, true, true>()}},
        {{launch_kernel_of<OnChip<Forward<T, false, false>, Images>>,
          launch_kernel_of<OnChip<Forward<T, false, true>, Images>>},
         {launch_kernel_of<OnChip<Backward<T, false, false>, Images>>,
          launch_kernel_of<OnChip<Backward<T, false, true>, Images>>}},
        {{launch_kernel_of<ParameterSums<Backward<T, false, false, 1, true>>>,
          launch_kernel_of<ParameterSums<Backward<T, false, true, 1, true>>>},
         {launch_kernel_of<ParameterSums<Backward<T, true, false, 1, true>>>,
          launch_kernel_of<ParameterSums<Backward<T, true, true, 1, true>>>}},
        on_chip_with_parameters<T>(),
        sizeof(Coefficients<accumulator_t<T>>),
    };
}

}  // namespace fastnorm::cuda
