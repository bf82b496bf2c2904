// The kernels of one instruction set. This is the only file that is compiled once per instruction
// set, with that set's flags, FASTNORM_ISA naming it and FASTNORM_ISA_HEADER its vector type. All
// that it exports is the table.
#include "cpu/kernels.h"

#include <utility>

#include FASTNORM_ISA_HEADER

#include "cpu/coefficients.h"
#include "cpu/columns.h"
#include "cpu/rows.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <Traversal traversal, class T>
struct KernelsOf;

template <class T>
struct KernelsOf<Traversal::rows, T> {
    template <ActivationKind kind>
    using For = Rows<T, kind>;
};

template <class T>
struct KernelsOf<Traversal::columns, T> {
    template <ActivationKind kind>
    using For = Columns<T, kind>;
};

template <Traversal traversal, class T, int... kind>
constexpr void fill(KernelTable& table, DType dtype, std::integer_sequence<int, kind...>) {
    using Family = KernelsOf<traversal, T>;
    const int t = static_cast<int>(traversal);
    const int d = static_cast<int>(dtype);
    table.moments[t][d] = &Family::template For<ActivationKind::identity>::moments;
    ((table.normalize[t][d][kind] =
          &Family::template For<static_cast<ActivationKind>(kind)>::normalize),
     ...);
    ((table.gradient_sums[t][d][kind] =
          &Family::template For<static_cast<ActivationKind>(kind)>::gradient_sums),
     ...);
    ((table.gradient[t][d][kind] =
          &Family::template For<static_cast<ActivationKind>(kind)>::gradient),
     ...);
}

template <Traversal traversal>
constexpr void fill(KernelTable& table) {
    using Kinds = std::make_integer_sequence<int, activations>;
    fill<traversal, float>(table, DType::float32, Kinds{});
    fill<traversal, double>(table, DType::float64, Kinds{});
    fill<traversal, Half>(table, DType::float16, Kinds{});
    fill<traversal, BFloat16>(table, DType::bfloat16, Kinds{});
}

template <class A>
constexpr void fill_coefficients(KernelTable& table, int accumulator) {
    using Of = Coefficients<A>;
    table.coefficients_of_z[accumulator] = &Of::template of_z<false>;
    table.coefficients_of_z_in_backward[accumulator] = &Of::template of_z<true>;
    table.coefficients_of_dx[accumulator] = &Of::of_dx;
}

constexpr KernelTable make_table() {
    KernelTable table{};
    table.name = FASTNORM_ISA_NAME;
    table.fence = [] { stream_fence(); };
    table.rstd_of_variances = &rstd_of_variances;
    fill_coefficients<float>(table, 0);
    fill_coefficients<double>(table, 1);
    fill<Traversal::rows>(table);
    fill<Traversal::columns>(table);
    return table;
}

}  // namespace

extern const KernelTable kernels;
constinit const KernelTable kernels = make_table();

}  // namespace fastnorm::FASTNORM_ISA
