// AVX2 + FMA + F16C: 8 floats or 4 doubles. README.md beside this file says what a Vec is.
#pragma once

#include <immintrin.h>

#include "core/dtypes.h"

namespace fastnorm::avx2 {

template <class A>
struct Vec;

template <>
struct Vec<float> {
    using Scalar = float;
    static constexpr int width = 8;
    static constexpr bool unroll = true;

    struct Mask {
        __m256 m;
        friend FASTNORM_FN Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator!(Mask a) {
            return {_mm256_xor_ps(a.m, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))};
        }
        friend FASTNORM_FN unsigned bits(Mask a) {
            return static_cast<unsigned>(_mm256_movemask_ps(a.m));
        }
    };

    __m256 v;

    FASTNORM_FN Vec() : v(_mm256_setzero_ps()) {}
    FASTNORM_FN explicit Vec(float x) : v(_mm256_set1_ps(x)) {}
    FASTNORM_FN Vec(__m256 x) : v(x) {}

    static FASTNORM_FN __m256i lanes() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
    static FASTNORM_FN __m256i first(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes());
    }
    static FASTNORM_FN Mask mask(unsigned bits) {
        const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit);
        return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit))};
    }

    static FASTNORM_FN Vec load(const float* p) { return _mm256_loadu_ps(p); }
    static FASTNORM_FN Vec load(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
    static FASTNORM_FN Vec load(const Half* p) { return widen(p, load_words(p)); }
    static FASTNORM_FN Vec load(const Half* p, int n) { return widen(p, load_words(p, n)); }
    static FASTNORM_FN Vec load(const BFloat16* p) { return widen(p, load_words(p)); }
    static FASTNORM_FN Vec load(const BFloat16* p, int n) { return widen(p, load_words(p, n)); }

    FASTNORM_FN void store(float* p) const { _mm256_storeu_ps(p, v); }
    // In pieces: a masked store takes many processors dozens of cycles.
    FASTNORM_FN void store(float* p, int n) const {
        if (n >= width) return store(p);
        __m128 rest = _mm256_castps256_ps128(v);
        if (n & 4) {
            _mm_storeu_ps(p, rest);
            rest = _mm256_extractf128_ps(v, 1);
            p += 4;
        }
        if (n & 2) {
            _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
            rest = _mm_movehl_ps(rest, rest);
            p += 2;
        }
        if (n & 1) _mm_store_ss(p, rest);
    }
    FASTNORM_FN void store(Half* p) const { store_words(p, narrow(p)); }
    FASTNORM_FN void store(Half* p, int n) const { store_words(p, narrow(p), n); }
    FASTNORM_FN void store(BFloat16* p) const { store_words(p, narrow(p)); }
    FASTNORM_FN void store(BFloat16* p, int n) const { store_words(p, narrow(p), n); }

    FASTNORM_FN void stream(float* p) const {
        _mm_stream_ps(p, _mm256_castps256_ps128(v));
        _mm_stream_ps(p + 4, _mm256_extractf128_ps(v, 1));
    }
    template <class T>
    FASTNORM_FN void stream(T* p) const {
        _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow(p));
    }
    static FASTNORM_FN void store_pair(BFloat16* p, Vec a, Vec b) {
        if (__builtin_expect(have_nan(a, b), false)) {
            a.store(p);
            b.store(p + width);
            return;
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_pair(a, b));
    }
    static FASTNORM_FN void stream_pair(BFloat16* p, Vec a, Vec b) {
        if (__builtin_expect(have_nan(a, b), false)) {
            a.stream(p);
            b.stream(p + width);
            return;
        }
        const __m256i words = narrow_pair(a, b);
        auto* const to = reinterpret_cast<__m128i*>(p);
        _mm_stream_si128(to, _mm256_castsi256_si128(words));
        _mm_stream_si128(to + 1, _mm256_extracti128_si256(words, 1));
    }

    friend FASTNORM_FN Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a) { return -a.v; }
    friend FASTNORM_FN Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
    friend FASTNORM_FN Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
    friend FASTNORM_FN Vec low_bits_as_exponent(Vec a) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 23));
    }
    // Of two operands the machine takes the second if one is NaN.
    friend FASTNORM_FN Vec at_least(Vec a, float lowest) {
        return _mm256_max_ps(_mm256_set1_ps(lowest), a.v);
    }
    friend FASTNORM_FN Vec at_most(Vec a, float highest) {
        return _mm256_min_ps(_mm256_set1_ps(highest), a.v);
    }
    friend FASTNORM_FN Mask operator<(Vec a, Vec b) {
        return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)};
    }
    friend FASTNORM_FN Mask operator<=(Vec a, Vec b) {
        return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)};
    }
    friend FASTNORM_FN Mask operator>(Vec a, Vec b) { return b < a; }
    friend FASTNORM_FN Mask operator>=(Vec a, Vec b) { return b <= a; }
    friend FASTNORM_FN Vec select(Mask m, Vec a, Vec b) { return _mm256_blendv_ps(b.v, a.v, m.m); }
    friend FASTNORM_FN Vec keep_first(Vec a, int n) {
        return _mm256_and_ps(a.v, _mm256_castsi256_ps(first(n)));
    }
    friend FASTNORM_FN float sum(Vec a) {
        __m128 halves = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
        halves = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
        return _mm_cvtss_f32(_mm_add_ss(halves, _mm_movehdup_ps(halves)));
    }

  private:
    static FASTNORM_FN __m128i load_words(const void* p) {
        return _mm_loadu_si128(static_cast<const __m128i*>(p));
    }
    // The last word first, so that those before it come below.
    static FASTNORM_FN __m128i load_words(const void* p, int n) {
        if (n >= width) return load_words(p);
        const auto* from = static_cast<const char*>(p);
        std::uint64_t low = 0, rest = 0;
        if (n & 1) {
            std::uint16_t one;
            std::memcpy(&one, from + 2 * (n & 6), 2);
            rest = one;
        }
        if (n & 2) {
            std::uint32_t two;
            std::memcpy(&two, from + 2 * (n & 4), 4);
            rest = rest << 32 | two;
        }
        if (!(n & 4)) return _mm_set_epi64x(0, static_cast<long long>(rest));
        std::memcpy(&low, from, 8);
        return _mm_set_epi64x(static_cast<long long>(rest), static_cast<long long>(low));
    }
    static FASTNORM_FN void store_words(void* p, __m128i words) {
        _mm_storeu_si128(static_cast<__m128i*>(p), words);
    }
    static FASTNORM_FN void store_words(void* p, __m128i words, int n) {
        if (n >= width) return store_words(p, words);
        auto* to = static_cast<char*>(p);
        if (n & 4) {
            _mm_storel_epi64(reinterpret_cast<__m128i*>(to), words);
            words = _mm_unpackhi_epi64(words, words);
            to += 8;
        }
        auto rest = static_cast<std::uint32_t>(_mm_cvtsi128_si32(words));
        if (n & 2) {
            std::memcpy(to, &rest, 4);
            rest = static_cast<std::uint32_t>(_mm_extract_epi32(words, 1));
            to += 4;
        }
        if (n & 1) {
            const auto one = static_cast<std::uint16_t>(rest);
            std::memcpy(to, &one, 2);
        }
    }
    static FASTNORM_FN Vec widen(const Half*, __m128i words) { return _mm256_cvtph_ps(words); }
    // Each word above two bytes of zeros: of the two halves' own, as no byte crosses from one to
    // the other.
    static FASTNORM_FN Vec widen(const BFloat16*, __m128i words) {
        const __m256i above =
            _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1, -1, 8, 9,
                             -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
        return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(words), above));
    }
    FASTNORM_FN __m128i narrow(Half*) const {
        return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    FASTNORM_FN __m128i narrow(BFloat16*) const {
        const __m256i quiet = _mm256_or_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x400000));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded(), quiet, nan), 16);
        return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
    }
    // Numbers, in the upper words: half of the last place that stays is added, less one bit where
    // that place is even. Shifts would take turns with the shuffles.
    FASTNORM_FN __m256i rounded() const {
        const __m256i u = _mm256_castps_si256(v);
        const __m256i last = _mm256_and_si256(u, _mm256_set1_epi32(0x10000));
        const __m256i even = _mm256_cmpeq_epi32(last, _mm256_setzero_si256());
        return _mm256_add_epi32(u, _mm256_add_epi32(even, _mm256_set1_epi32(0x8000)));
    }
    static FASTNORM_FN bool have_nan(Vec a, Vec b) {
        return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_UNORD_Q)) != 0;
    }
    // Of numbers.
    static FASTNORM_FN __m256i narrow_pair(Vec a, Vec b) {
        const __m256i words =
            _mm256_blend_epi16(_mm256_srli_epi32(a.rounded(), 16), b.rounded(), 0xaa);
        const __m256i apart =
            _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9,
                             12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(words, apart), 0xd8);
    }
};

template <>
struct Vec<double> {
    using Scalar = double;
    static constexpr int width = 4;
    static constexpr bool unroll = true;

    struct Mask {
        __m256d m;
        friend FASTNORM_FN Mask operator&(Mask a, Mask b) { return {_mm256_and_pd(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator|(Mask a, Mask b) { return {_mm256_or_pd(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator!(Mask a) {
            return {_mm256_xor_pd(a.m, _mm256_castsi256_pd(_mm256_set1_epi64x(-1)))};
        }
        friend FASTNORM_FN unsigned bits(Mask a) {
            return static_cast<unsigned>(_mm256_movemask_pd(a.m));
        }
    };

    __m256d v;

    FASTNORM_FN Vec() : v(_mm256_setzero_pd()) {}
    FASTNORM_FN explicit Vec(double x) : v(_mm256_set1_pd(x)) {}
    FASTNORM_FN Vec(__m256d x) : v(x) {}

    static FASTNORM_FN __m256i first(int n) {
        return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
    }
    static FASTNORM_FN Mask mask(unsigned bits) {
        const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
        const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(bits), bit);
        return {_mm256_castsi256_pd(_mm256_cmpeq_epi64(set, bit))};
    }

    static FASTNORM_FN Vec load(const double* p) { return _mm256_loadu_pd(p); }
    static FASTNORM_FN Vec load(const double* p, int n) { return _mm256_maskload_pd(p, first(n)); }
    FASTNORM_FN void store(double* p) const { _mm256_storeu_pd(p, v); }
    FASTNORM_FN void store(double* p, int n) const {
        if (n >= width) return store(p);
        __m128d rest = _mm256_castpd256_pd128(v);
        if (n & 2) {
            _mm_storeu_pd(p, rest);
            rest = _mm256_extractf128_pd(v, 1);
            p += 2;
        }
        if (n & 1) _mm_store_sd(p, rest);
    }

    FASTNORM_FN void stream(double* p) const {
        _mm_stream_pd(p, _mm256_castpd256_pd128(v));
        _mm_stream_pd(p + 2, _mm256_extractf128_pd(v, 1));
    }

    friend FASTNORM_FN Vec operator+(Vec a, Vec b) { return _mm256_add_pd(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a, Vec b) { return _mm256_sub_pd(a.v, b.v); }
    friend FASTNORM_FN Vec operator*(Vec a, Vec b) { return _mm256_mul_pd(a.v, b.v); }
    friend FASTNORM_FN Vec operator/(Vec a, Vec b) { return _mm256_div_pd(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a) { return -a.v; }
    friend FASTNORM_FN Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_pd(a.v, b.v, c.v); }
    friend FASTNORM_FN Vec abs(Vec a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v); }
    friend FASTNORM_FN Vec low_bits_as_exponent(Vec a) {
        return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(a.v), 52));
    }
    friend FASTNORM_FN Vec at_least(Vec a, double lowest) {
        return _mm256_max_pd(_mm256_set1_pd(lowest), a.v);
    }
    friend FASTNORM_FN Vec at_most(Vec a, double highest) {
        return _mm256_min_pd(_mm256_set1_pd(highest), a.v);
    }
    friend FASTNORM_FN Mask operator<(Vec a, Vec b) {
        return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)};
    }
    friend FASTNORM_FN Mask operator<=(Vec a, Vec b) {
        return {_mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ)};
    }
    friend FASTNORM_FN Mask operator>(Vec a, Vec b) { return b < a; }
    friend FASTNORM_FN Mask operator>=(Vec a, Vec b) { return b <= a; }
    friend FASTNORM_FN Vec select(Mask m, Vec a, Vec b) { return _mm256_blendv_pd(b.v, a.v, m.m); }
    friend FASTNORM_FN Vec keep_first(Vec a, int n) {
        return _mm256_and_pd(a.v, _mm256_castsi256_pd(first(n)));
    }
    friend FASTNORM_FN double sum(Vec a) {
        const __m128d halves =
            _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
        return _mm_cvtsd_f64(_mm_add_sd(halves, _mm_unpackhi_pd(halves, halves)));
    }
};

// In halves, which any array's alignment suffices for.
inline constexpr int stream_alignment = 16;
FASTNORM_FN void stream_line(void* to, const void* from) {
    const auto* source = static_cast<const float*>(from);
    auto* target = static_cast<float*>(to);
    _mm256_stream_ps(target, _mm256_loadu_ps(source));
    _mm256_stream_ps(target + 8, _mm256_loadu_ps(source + 8));
}
FASTNORM_FN void stream_fence() { _mm_sfence(); }

}  // namespace fastnorm::avx2
