// The kernels of the rows traversal, compiled once per instruction set: see kernels.cpp.
#include FASTNORM_ISA_HEADER

#include "cpu/rows.h"

#include "cpu/traversal_kernels.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class T, ActivationKind kind>
constexpr void fill_interleaved(TraversalKernels& table, DType dtype) {
    const int d = static_cast<int>(dtype), a = static_cast<int>(kind);
    table.normalize_and_moments[d][a] = &Rows<T, kind>::normalize_and_moments;
    table.gradient_and_sums[d][a] = &Rows<T, kind>::gradient_and_sums;
}

// For what most networks are trained with: any more would take as long to compile.
template <ActivationKind... kinds>
constexpr TraversalKernels make_table() {
    TraversalKernels table = traversal_kernels<Rows>();
    (fill_interleaved<float, kinds>(table, DType::float32), ...);
    (fill_interleaved<double, kinds>(table, DType::float64), ...);
    (fill_interleaved<Half, kinds>(table, DType::float16), ...);
    (fill_interleaved<BFloat16, kinds>(table, DType::bfloat16), ...);
    return table;
}

}  // namespace

constinit const TraversalKernels rows_kernels =
    make_table<ActivationKind::identity, ActivationKind::relu>();

}  // namespace fastnorm::FASTNORM_ISA
