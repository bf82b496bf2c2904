// The kernels of one instruction set. This file, rows.cpp, columns.cpp and features.cpp are all
// that is compiled once per instruction set, with that set's flags, FASTNORM_ISA naming it and
// FASTNORM_ISA_HEADER its vector type; four files, for much code is made of them. All that they
// export is the table and its parts.
#include "cpu/kernels.h"

#include FASTNORM_ISA_HEADER

#include "cpu/coefficients.h"
#include "cpu/lanes.h"
#include "cpu/traversal_kernels.h"

namespace fastnorm::FASTNORM_ISA {

namespace {

template <class A>
constexpr void fill_coefficients(KernelTable& table, int accumulator) {
    using Of = Coefficients<A>;
    table.coefficients_of_z[accumulator] = &Of::template of_z<false>;
    table.coefficients_of_z_in_backward[accumulator] = &Of::template of_z<true>;
    table.coefficients_of_dx[accumulator] = &Of::of_dx;
}

template <class T>
void widen(const void* from, std::int64_t count, void* to) {
    using A = accumulator_t<T>;
    for_packs<A>(count, [&](std::int64_t i, auto valid) {
        for_vectors<A>([&](auto v) {
            store<A>(static_cast<A*>(to) + i, v, load<A>(static_cast<const T*>(from) + i, v, valid),
                     valid);
        });
    });
}

constexpr KernelTable make_table() {
    KernelTable table{};
    table.name = FASTNORM_ISA_NAME;
    table.fence = [] { stream_fence(); };
    table.of[static_cast<int>(Traversal::rows)] = &rows_kernels;
    table.of[static_cast<int>(Traversal::columns)] = &columns_kernels;
    table.of[static_cast<int>(Traversal::features)] = &features_kernels;
    table.widen[static_cast<int>(DType::float32)] = &widen<float>;
    table.widen[static_cast<int>(DType::float64)] = &widen<double>;
    table.widen[static_cast<int>(DType::float16)] = &widen<Half>;
    table.widen[static_cast<int>(DType::bfloat16)] = &widen<BFloat16>;
    table.rstd_of_variances = &rstd_of_variances;
    fill_coefficients<float>(table, 0);
    fill_coefficients<double>(table, 1);
    return table;
}

}  // namespace

extern const KernelTable kernels;
constinit const KernelTable kernels = make_table();

}  // namespace fastnorm::FASTNORM_ISA
