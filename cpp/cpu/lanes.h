// What both traversals are made of: packs of a fixed number of virtual lanes whatever the width of
// the hardware's vectors, partial packs, and the walk over outer. Compiled once per instruction
// set.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/activations.h"
#include "core/dtypes.h"
#include "core/maps.h"
#include "core/stats.h"
#include "cpu/kernels.h"

// A function into which all is inlined that it calls, lambdas too: what they add to stays in
// registers.
#if defined(__SANITIZE_ADDRESS__)  // instrumented, it would take minutes to compile
#define FASTNORM_FLAT
#define FASTNORM_INLINED
#else
#define FASTNORM_FLAT __attribute__((flatten))
// For lambdas that GCC leaves as calls nevertheless, as it does where they are large.
#define FASTNORM_INLINED __attribute__((always_inline))
#endif

namespace fastnorm::FASTNORM_ISA {

namespace {

// 32 floats or 16 doubles: element i of a row goes to lane i % lanes on every instruction set.
template <class A>
constexpr int lanes = static_cast<int>(128 / sizeof(A));

template <class A>
constexpr int vectors = lanes<A> / Vec<A>::width;

template <class F, int... v>
FASTNORM_FN void unrolled(F&& f, std::integer_sequence<int, v...>) {
    (f(std::integral_constant<int, v>{}), ...);
}

// Calls f(0), f(1), ..., f(n - 1), each with its constant.
template <int n, class F>
FASTNORM_FN void unrolled(F&& f) {
    unrolled(f, std::make_integer_sequence<int, n>{});
}

// How many rows a map takes at a time at most; one row is known when it is compiled.
constexpr int most_rows = 4;
using One = std::integral_constant<int, 1>;

// Calls f(v) for each vector of a pack.
template <class A, class F>
FASTNORM_FN void for_vectors(F&& f) {
    if constexpr (Vec<A>::unroll) {
        unrolled<vectors<A>>(f);
    } else {
        for (int v = 0; v < vectors<A>; ++v) f(v);
    }
}

// Calls f(offset, valid) for each pack of count elements; valid is a compile-time constant for the
// full packs and an int for the last, partial one.
template <class A, class F>
FASTNORM_FN void for_packs(std::int64_t count, F&& f) {
    std::int64_t i = 0;
    for (; i + lanes<A> <= count; i += lanes<A>) f(i, std::integral_constant<int, lanes<A>>{});
    if (i < count) f(i, static_cast<int>(count - i));
}

// How many of the elements of vector v are valid.
template <class A>
FASTNORM_FN int in_vector(int valid, int v) {
    const int rest = valid - v * Vec<A>::width;
    return rest < 0 ? 0 : rest > Vec<A>::width ? Vec<A>::width : rest;
}

template <class Valid>
constexpr bool is_full = !std::is_same_v<Valid, int>;

// Vector v of the pack at p.
template <class A, class T, class Valid>
FASTNORM_FN Vec<A> load(const T* p, int v, Valid valid) {
    if constexpr (is_full<Valid>) {
        return Vec<A>::load(p + v * Vec<A>::width);
    } else {
        return Vec<A>::load(p + v * Vec<A>::width, in_vector<A>(valid, v));
    }
}

template <class A, class T, class Valid>
FASTNORM_FN void store(T* p, int v, Vec<A> x, Valid valid) {
    if constexpr (is_full<Valid>) {
        x.store(p + v * Vec<A>::width);
    } else {
        x.store(p + v * Vec<A>::width, in_vector<A>(valid, v));
    }
}

// The same, if direct past the cache: of whole packs, to aligned addresses.
template <class A, class T, class Valid>
FASTNORM_FN void store(T* p, int v, Vec<A> x, Valid valid, bool direct) {
    if constexpr (is_full<Valid>) {
        if (direct) return x.stream(p + v * Vec<A>::width);
    }
    store<A>(p, v, x, valid);
}

// What is fetched into the cache beside what is at hand: the same number of bytes further on in an
// operand.
struct Ahead {
    std::int64_t distance = 0;  // in bytes; 0: nothing is fetched

    // p: the pack at hand.
    template <class A, class T>
    FASTNORM_FN void fetch(const T* p) const {
        each_line<A>(p, [](const char* line) { __builtin_prefetch(line, 0, 2); });
    }
    // For vector v of it alone: a map of one tensor has no time to lose between two lines.
    template <class A, class T>
    FASTNORM_FN void fetch(const T* p, int v) const {
        fetch_line(p + v * Vec<A>::width, v * Vec<A>::width);
    }
    // For the vector at p, i elements behind one that begins a line or stands for one that does.
    template <class T>
    FASTNORM_FN void fetch_line(const T* p, std::int64_t i) const {
        if (begins_line<T>(i)) __builtin_prefetch(at(p), 0, 2);
    }
    template <class T>
    FASTNORM_FN void fetch_line_to_write(const T* p, std::int64_t i) const {
        if (begins_line<T>(i)) __builtin_prefetch(at(p), 1, 3);
    }
    template <class A, class T>
    FASTNORM_FN void fetch_to_write(const T* p) const {
        each_line<A>(p, [](const char* line) { __builtin_prefetch(line, 1, 3); });
    }

  private:
    template <class T>
    FASTNORM_FN const char* at(const T* p) const {
        return reinterpret_cast<const char*>(p) + distance;
    }
    template <class T>
    FASTNORM_FN bool begins_line(std::int64_t i) const {
        return distance != 0 && i * static_cast<std::int64_t>(sizeof(T)) % 64 == 0;
    }
    template <class A, class T, class F>
    FASTNORM_FN void each_line(const T* p, F&& f) const {
        if (distance == 0) return;
        for (int line = 0; line < lanes<A> * static_cast<int>(sizeof(T)); line += 64)
            f(at(p) + line);
    }
};

// A run's row of the mask from some element of it on, one bit an element. Packs may start anywhere
// in a byte; a partial pack is stored after what comes before it in a row, and before what comes
// after it. Where short rows are taken several at a time as one (columns), a pack may have bits of
// many of them.
struct MaskRow {
    unsigned char* bytes = nullptr;  // null: no mask
    int shift = 0;                   // the element's bit in the first byte
    std::int64_t run = 0;            // elements of a row that ends within a byte, else 0, and
    std::int64_t first = 0;          // the element: bytes are then those of its row

    explicit operator bool() const { return bytes != nullptr; }

    // count: whole bytes, or whole rows.
    FASTNORM_FN void advance(std::int64_t count) {
        if (bytes != nullptr) bytes += run == 0 ? count / 8 : count / run * bytes_of(run);
    }

    // valid: of a pack, a constant if it is full.
    template <class Valid>
    FASTNORM_FN unsigned load(std::int64_t i, Valid valid) const {
        if (run != 0) return load_from_rows(i, valid);
        const unsigned char* const p = bytes + i / 8;
        if constexpr (is_full<Valid>) {
            Word<Valid> low;
            std::memcpy(&low, p, sizeof(low));
            if (shift == 0) return low;
            return static_cast<unsigned>((std::uint64_t{p[sizeof(low)]} << Valid::value | low) >>
                                         shift);
        } else {
            return static_cast<unsigned>(load_bits(p, valid + shift) >> shift);
        }
    }
    template <class Valid>
    FASTNORM_FN void store(std::int64_t i, unsigned bits, Valid valid, bool several) const {
        if (run != 0) return store_to_rows(i, bits, valid);
        unsigned char* const p = bytes + i / 8;
        const unsigned before = shift == 0 ? 0 : p[0] & ((1u << shift) - 1u);
        if constexpr (is_full<Valid>) {
            const std::uint64_t all = std::uint64_t{bits} << shift | before;
            const auto low = static_cast<Word<Valid>>(all);
            std::memcpy(p, &low, sizeof(low));
            if (shift == 0) return;
            // Where several rows are stored at a time the next one has begun in that byte.
            const unsigned rest = several ? p[sizeof(low)] & ~((1u << shift) - 1u) : 0;
            p[sizeof(low)] = static_cast<unsigned char>(rest | (all >> Valid::value));
        } else {
            const std::uint64_t own = bits & ((1u << valid) - 1u);
            store_bits(p, valid + shift, own << shift | before);
        }
    }

    // Whole bytes of up to 64 bits, one by one: of a size that is not constant memcpy is a call.
    static FASTNORM_FN std::uint64_t load_bits(const unsigned char* p, int count) {
        std::uint64_t bits = 0;
        for (int b = 0; 8 * b < count; ++b) bits |= std::uint64_t{p[b]} << (8 * b);
        return bits;
    }
    static FASTNORM_FN void store_bits(unsigned char* p, int count, std::uint64_t bits) {
        for (int b = 0; 8 * b < count; ++b) p[b] = static_cast<unsigned char>(bits >> (8 * b));
    }

  private:
    // The bits of a full pack.
    template <class Valid>
    using Word = std::conditional_t<Valid::value == 32, std::uint32_t, std::uint16_t>;

    static FASTNORM_FN std::int64_t bytes_of(std::int64_t bits) { return (bits + 7) / 8; }

    // Calls f(byte, shift, done, count) for what each row has of the pack at i: count of its bits,
    // after done others, from that bit of that byte on.
    template <class F>
    FASTNORM_FN void for_rows(std::int64_t i, int valid, F&& f) const {
        std::int64_t column = (first + i) % run;
        unsigned char* row = bytes + (first + i) / run * bytes_of(run);
        for (int done = 0; done < valid; column = 0, row += bytes_of(run)) {
            const std::int64_t rest = run - column;
            const int count = rest < valid - done ? static_cast<int>(rest) : valid - done;
            f(row + column / 8, static_cast<int>(column % 8), done, count);
            done += count;
        }
    }
    __attribute__((noinline)) unsigned load_from_rows(std::int64_t i, int valid) const {
        std::uint64_t bits = 0;
        for_rows(i, valid, [&](const unsigned char* p, int from, int done, int count) {
            const std::uint64_t found = load_bits(p, from + count);
            bits |= (found >> from & ((std::uint64_t{1} << count) - 1)) << done;
        });
        return static_cast<unsigned>(bits);
    }
    __attribute__((noinline)) void store_to_rows(std::int64_t i, unsigned bits, int valid) const {
        for_rows(i, valid, [&](unsigned char* p, int to, int done, int count) {
            const std::uint64_t own = bits >> done & ((std::uint64_t{1} << count) - 1);
            store_bits(p, to + count, own << to | (p[0] & ((1u << to) - 1u)));
        });
    }
};

// The sum of all lanes, as a tree of fixed shape.
template <class A>
FASTNORM_FN double sum_of_lanes(const double* x) {
    using V = Vec<double>;
    alignas(64) double sums[lanes<A> / 2];
    int width = lanes<A> / 2;
    for (; width >= V::width; width /= 2, x = sums) {
        for (int i = 0; i < width; i += V::width) {
            (V::load(x + i) + V::load(x + i + width)).store(sums + i);
        }
    }
    // What is left is a vector: width is V::width / 2.
    unrolled<V::width>([&](auto i) {
        constexpr int half = V::width >> (i + 1);
        for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    });
    return sums[0];
}

// Two sums in each lane, of a and of a * b: in A over a block, in double over a tile.
template <class A>
struct LaneSums {
    using V = Vec<A>;
    alignas(64) A block_a[lanes<A>];
    alignas(64) A block_ab[lanes<A>];
    alignas(64) double total_a[lanes<A>];
    alignas(64) double total_ab[lanes<A>];

    // By vectors: of a loop over elements compilers make a call or an instruction that is slow to
    // start.
    FASTNORM_FN void clear() {
        for (int i = 0; i < lanes<A>; i += V::width) {
            V().store(block_a + i);
            V().store(block_ab + i);
        }
        for (int i = 0; i < lanes<A>; i += Vec<double>::width) {
            Vec<double>().store(total_a + i);
            Vec<double>().store(total_ab + i);
        }
    }

    // Calls each(add), which calls add(v, valid, a, b) for vectors of packs.
    template <class Each>
    FASTNORM_FN void add(Each&& each) {
        V sum[vectors<A>], product[vectors<A>];
        for_vectors<A>([&](auto v) {
            sum[v] = V::load(block_a + v * V::width);
            product[v] = V::load(block_ab + v * V::width);
        });
        each([&](auto v, auto valid, V a, V b) {
            keep_valid(v, valid, a, b);
            sum[v] = sum[v] + a;
            product[v] = fma(a, b, product[v]);
        });
        for_vectors<A>([&](auto v) {
            sum[v].store(block_a + v * V::width);
            product[v].store(block_ab + v * V::width);
        });
    }

    // Ends a block. Each block's sums are rounded on their own, whatever came before.
    FASTNORM_FN void fold() {
        for (int i = 0; i < lanes<A>; ++i) {
            total_a[i] += static_cast<double>(block_a[i]);
            total_ab[i] += static_cast<double>(block_ab[i]);
            block_a[i] = block_ab[i] = A(0);
        }
    }

  private:
    // Both factors: what lies beside a pack may be infinite.
    template <class Valid>
    static FASTNORM_FN void keep_valid(int v, Valid valid, V& a, V& b) {
        if constexpr (!is_full<Valid>) {
            a = keep_first(a, in_vector<A>(valid, v));
            b = keep_first(b, in_vector<A>(valid, v));
        }
    }
};

// Bytes from the start of an operand to outer index o, where outer is a nest of dimensions: off the
// hot path, as its divisions are slow.
__attribute__((noinline)) std::int64_t nested_offset(const View& view, const Operand& operand,
                                                     std::int64_t o) {
    std::int64_t offset = 0;
    for (int d = view.outer_dims - 1; d > 0; --d) {
        offset += (o % view.outer_extent[d]) * operand.outer_stride[d];
        o /= view.outer_extent[d];
    }
    return offset + o * operand.outer_stride[0];
}

// Bytes from the start of an operand to outer index o.
FASTNORM_FN std::int64_t outer_offset(const View& view, const Operand& operand, std::int64_t o) {
    return view.outer_dims == 1 ? o * operand.outer_stride[0] : nested_offset(view, operand, o);
}

// The run of an operand at outer index o, statistic s.
template <class T>
FASTNORM_FN T* run_of(const View& view, const Operand& operand, std::int64_t batch, std::int64_t o,
                      std::int64_t s) {
    if (!operand) return nullptr;
    return reinterpret_cast<T*>(operand.data + batch * operand.batch_stride +
                                outer_offset(view, operand, o) + s * operand.stat_stride);
}

// The row of the mask that belongs to a run, from element i of it on.
FASTNORM_FN MaskRow mask_at(const KernelArgs& args, std::int64_t run, std::int64_t i) {
    if (args.mask == nullptr) return {};
    const View& view = args.view;
    unsigned char* const row = args.mask + run * view.mask_row_bytes();
    if (view.mask_is_ragged()) return {row, 0, view.run(), i};
    return {row + i / 8, static_cast<int>(i % 8)};
}

template <class A>
FASTNORM_FN ActParams<A> activation_params(const KernelArgs& args) {
    return {static_cast<A>(args.alpha), static_cast<A>(args.beta)};
}

template <class A>
FASTNORM_FN const A* coefficient(const KernelArgs& args, Coefficient which) {
    return static_cast<const A*>(args.coefficients) +
           static_cast<int>(which) * args.coefficients_stride;
}

// g * centred(x) in double, of the coefficients at an index: prescaled at the end, so that an
// infinity arises only where the product is one.
template <class A>
struct ExactCentre {
    double mean, prescale;

    FASTNORM_FN ExactCentre(const KernelArgs& args, std::int64_t index) {
        const auto get = [&](Coefficient which) {
            return static_cast<double>(coefficient<A>(args, which)[index]);
        };
        prescale = get(Coefficient::prescale);
        mean = (get(Coefficient::mean_hi) + get(Coefficient::mean_lo)) / prescale;
    }
    FASTNORM_FN double product(A g, A x) const {
        return static_cast<double>(g) * (static_cast<double>(x) - mean) * prescale;
    }
};

// How many values of a statistic are looked at for a guess of its mean, spread over a tile.
constexpr int pivot_samples = 8;

// A pivot near a mean: any number will do but infinity and NaN (those belong to the sums), so one
// of few digits, a multiple of about an eighth of the values' spread. Values on a grid, as integers
// and the 16-bit types are, then differ from it by numbers of few digits, whose sums hardly round;
// with all the mean's digits in every difference they would all round to one side.
template <class A>
FASTNORM_FN Vec<A> pivot_near(Vec<A> mean, Vec<A> spread) {
    const Vec<A> magic = spread * Vec<A>(sizeof(A) == 4 ? A(0x1p20) : A(0x1p49));
    const Vec<A> pivot = (mean + magic) - magic;
    return select(pivot - pivot <= Vec<A>(), pivot, Vec<A>());
}
template <class A>
FASTNORM_FN A pivot_near(A mean, A spread) {
    const A magic = spread * (sizeof(A) == 4 ? A(0x1p20) : A(0x1p49));
    const A pivot = (mean + magic) - magic;
    return is_finite(pivot) ? pivot : A(0);
}

// The moments of count values in double, in two passes: for the rare block whose squares leave
// float's range. each(f) calls f with each value; first is one of them.
template <class A, class Each>
FASTNORM_FN Moments exact_moments(double count, A first, Each&& each) {
    const double origin = static_cast<double>(first);
    double sum = 0;
    each([&](A x) { sum += static_cast<double>(x) - origin; });
    const double mean = origin + sum / count;
    double m2 = 0;
    each([&](A x) {
        const double d = static_cast<double>(x) - mean;
        m2 += d * d;
    });
    return {count, mean, m2};
}

// The same about 0.
template <class A, class Each>
FASTNORM_FN Moments exact_squares(double count, Each&& each) {
    double squares = 0;
    each([&](A x) { squares += static_cast<double>(x) * static_cast<double>(x); });
    return {count, 0.0, squares};
}

}  // namespace

}  // namespace fastnorm::FASTNORM_ISA
