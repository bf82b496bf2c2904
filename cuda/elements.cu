#include "cuda/elements.h"

#include "cuda/driver.h"

namespace fastnorm::cuda {

namespace {

template <class Unsigned>
void copy_as(const Execution& execution, const TensorView& to, const TensorView& from) {
    Copy<Unsigned> kernel{
        static_cast<char*>(to.data), static_cast<const char*>(from.data), 1, to.ndim, {}, {}, {}};
    for (int d = 0; d < to.ndim; ++d) {
        kernel.elements *= to.shape[d];
        kernel.extent[d] = to.shape[d];
        kernel.to_stride[d] = to.strides[d];
        kernel.from_stride[d] = from.strides[d];
    }
    if (kernel.elements == 0) return;
    launch(execution.op, kernel, shape_for(kernel.elements), execution.stream);
}

}  // namespace

void copy_elements(const Execution& execution, const TensorView& to, const TensorView& from) {
    const OnDevice on_device(execution.op, execution.device);
    switch (size_of(to.dtype)) {
        case 1: return copy_as<std::uint8_t>(execution, to, from);
        case 2: return copy_as<std::uint16_t>(execution, to, from);
        case 4: return copy_as<std::uint32_t>(execution, to, from);
        default: return copy_as<std::uint64_t>(execution, to, from);
    }
}

void fill(const Execution& execution, const PerStatistic& to, std::int64_t count, double value) {
    if (!to || count == 0) return;
    const OnDevice on_device(execution.op, execution.device);
    launch(execution.op, Fill{to, count, value}, shape_for(count), execution.stream);
}

void rstd_of(const Execution& execution, const PerStatistic& to, const PerStatistic& var,
             std::int64_t count, double eps) {
    if (count == 0) return;
    const OnDevice on_device(execution.op, execution.device);
    launch(execution.op, Rstd{to, var, count, eps}, shape_for(count), execution.stream);
}

void add_up_gradients(const Execution& execution, const Addends& of, const PerStatistic& dweight,
                      const PerStatistic& dbias) {
    launch(execution.op, Gradients{of, dweight, dbias}, shape_for(of), execution.stream);
}

void update_running(const Execution& execution, const Addends& of, std::int64_t values,
                    const RunningStatistics& running) {
    launch(execution.op,
           Running{of, static_cast<double>(values), running.mean, running.var, running.momentum,
                   running.unbiased},
           shape_for(of), execution.stream);
}

}  // namespace fastnorm::cuda
