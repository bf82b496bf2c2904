// AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles. README.md beside this file says what a Vec is.
#pragma once

#include <immintrin.h>

#include "core/dtypes.h"

namespace fastnorm::avx512 {

template <class A>
struct Vec;

template <>
struct Vec<float> {
    using Scalar = float;
    static constexpr int width = 16;
    static constexpr bool unroll = true;

    struct Mask {
        __mmask16 m;
        friend FASTNORM_FN Mask operator&(Mask a, Mask b) { return {_kand_mask16(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator|(Mask a, Mask b) { return {_kor_mask16(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator!(Mask a) { return {_knot_mask16(a.m)}; }
        friend FASTNORM_FN unsigned bits(Mask a) { return a.m; }
    };

    __m512 v;

    FASTNORM_FN Vec() : v(_mm512_setzero_ps()) {}
    FASTNORM_FN explicit Vec(float x) : v(_mm512_set1_ps(x)) {}
    FASTNORM_FN Vec(__m512 x) : v(x) {}

    static FASTNORM_FN __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
    static FASTNORM_FN Mask mask(unsigned bits) { return {static_cast<__mmask16>(bits)}; }

    static FASTNORM_FN Vec load(const float* p) { return _mm512_loadu_ps(p); }
    static FASTNORM_FN Vec load(const float* p, int n) {
        return _mm512_maskz_loadu_ps(first(n), p);
    }
    static FASTNORM_FN Vec load(const Half* p) { return widen(p, _mm256_loadu_epi16(p)); }
    static FASTNORM_FN Vec load(const Half* p, int n) {
        return widen(p, _mm256_maskz_loadu_epi16(first(n), p));
    }
    static FASTNORM_FN Vec load(const BFloat16* p) { return widen(p, _mm256_loadu_epi16(p)); }
    static FASTNORM_FN Vec load(const BFloat16* p, int n) {
        return widen(p, _mm256_maskz_loadu_epi16(first(n), p));
    }

    FASTNORM_FN void store(float* p) const { _mm512_storeu_ps(p, v); }
    FASTNORM_FN void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
    FASTNORM_FN void store(Half* p) const { _mm256_storeu_epi16(p, narrow(p)); }
    FASTNORM_FN void store(Half* p, int n) const {
        _mm256_mask_storeu_epi16(p, first(n), narrow(p));
    }
    FASTNORM_FN void store(BFloat16* p) const { _mm256_storeu_epi16(p, narrow(p)); }
    FASTNORM_FN void store(BFloat16* p, int n) const {
        _mm256_mask_storeu_epi16(p, first(n), narrow(p));
    }

    FASTNORM_FN void stream(float* p) const { _mm512_stream_ps(p, v); }
    template <class T>
    FASTNORM_FN void stream(T* p) const {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(p));
    }
    static FASTNORM_FN void store_pair(BFloat16* p, Vec a, Vec b) {
        if (__builtin_expect(have_nan(a, b), false)) {
            a.store(p);
            b.store(p + width);
            return;
        }
        _mm512_storeu_si512(p, narrow_pair(a, b));
    }
    static FASTNORM_FN void stream_pair(BFloat16* p, Vec a, Vec b) {
        if (__builtin_expect(have_nan(a, b), false)) {
            a.stream(p);
            b.stream(p + width);
            return;
        }
        _mm512_stream_si512(reinterpret_cast<__m512i*>(p), narrow_pair(a, b));
    }

    friend FASTNORM_FN Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a) { return -a.v; }
    friend FASTNORM_FN Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
    friend FASTNORM_FN Vec abs(Vec a) { return _mm512_abs_ps(a.v); }
    friend FASTNORM_FN Vec low_bits_as_exponent(Vec a) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23));
    }
    // Of two operands the machine takes the second if one is NaN.
    friend FASTNORM_FN Vec at_least(Vec a, float lowest) {
        return _mm512_max_ps(_mm512_set1_ps(lowest), a.v);
    }
    friend FASTNORM_FN Vec at_most(Vec a, float highest) {
        return _mm512_min_ps(_mm512_set1_ps(highest), a.v);
    }
    friend FASTNORM_FN Mask operator<(Vec a, Vec b) {
        return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
    }
    friend FASTNORM_FN Mask operator<=(Vec a, Vec b) {
        return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
    }
    friend FASTNORM_FN Mask operator>(Vec a, Vec b) { return b < a; }
    friend FASTNORM_FN Mask operator>=(Vec a, Vec b) { return b <= a; }
    friend FASTNORM_FN Vec select(Mask m, Vec a, Vec b) {
        return _mm512_mask_blend_ps(m.m, b.v, a.v);
    }
    friend FASTNORM_FN Vec keep_first(Vec a, int n) { return _mm512_maskz_mov_ps(first(n), a.v); }
    friend FASTNORM_FN float sum(Vec a) {
        const __m256 eight =
            _mm256_add_ps(_mm512_castps512_ps256(a.v),
                          _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
        __m128 halves = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        halves = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
        return _mm_cvtss_f32(_mm_add_ss(halves, _mm_movehdup_ps(halves)));
    }
    static FASTNORM_FN void sums(Vec a, Vec b, Vec c, Vec d, float* to) {
        // Of each in turn the halves, and of two vectors' halves those of four.
        const auto halved = [](__m512 p, __m512 q) {
            return _mm512_add_ps(_mm512_shuffle_f32x4(p, q, 0x44),
                                 _mm512_shuffle_f32x4(p, q, 0xee));
        };
        const __m512 ab = halved(a.v, b.v), cd = halved(c.v, d.v);
        __m512 four =
            _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
        four = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
        four = _mm512_add_ps(four, _mm512_movehdup_ps(four));
        const __m512i firsts = _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12));
        _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, four)));
    }

  private:
    static FASTNORM_FN Vec widen(const Half*, __m256i words) { return _mm512_cvtph_ps(words); }
    // Its words to 1, 3, 5, ...
    static FASTNORM_FN Vec widen(const BFloat16*, __m256i words) {
        const __m512i from = _mm512_setr_epi32(0x00000000, 0x00010000, 0x00020000, 0x00030000,
                                               0x00040000, 0x00050000, 0x00060000, 0x00070000,
                                               0x00080000, 0x00090000, 0x000a0000, 0x000b0000,
                                               0x000c0000, 0x000d0000, 0x000e0000, 0x000f0000);
        return _mm512_castsi512_ps(
            _mm512_maskz_permutexvar_epi16(0xaaaaaaaa, from, _mm512_castsi256_si512(words)));
    }
    FASTNORM_FN __m256i narrow(Half*) const {
        return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    // By integers: the instruction of AVX512_BF16 flushes subnormals. Adds half of the last place
    // that stays, less one bit where that place is even; a NaN only becomes quiet.
    FASTNORM_FN __m256i narrow(BFloat16*) const {
        const __m512i u = _mm512_castps_si512(v);
        const __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
        const __mmask16 odd = _mm512_mask_test_epi32_mask(number, u, _mm512_set1_epi32(0x10000));
        const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
        __m512i rounded = _mm512_mask_add_epi32(quiet, number, u, _mm512_set1_epi32(0x7fff));
        rounded = _mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1));
        return _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper_words(), rounded));
    }
    static FASTNORM_FN bool have_nan(Vec a, Vec b) {
        return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q) != 0;
    }
    // Of numbers. An average has a bit more than its words: that of a lower word and of 0x7fff, or
    // of 0x8000 where the upper word is odd, has the carry of their sum on top.
    static FASTNORM_FN __m512i narrow_pair(Vec a, Vec b) {
        const auto words = [&](__m512i which) {
            return _mm512_permutex2var_epi16(_mm512_castps_si512(a.v), which,
                                             _mm512_castps_si512(b.v));
        };
        const __m512i one = _mm512_set1_epi16(1);
        const __m512i upper = words(upper_words());
        const __m512i lower = words(_mm512_sub_epi16(upper_words(), one));
        constexpr int and_or = 0xea;  // a & b | c
        const __m512i half =
            _mm512_ternarylogic_epi32(upper, one, _mm512_set1_epi16(0x7ffe), and_or);
        return _mm512_add_epi16(upper, _mm512_srli_epi16(_mm512_avg_epu16(lower, half), 15));
    }
    // Words 1, 3, 5, ... of one vector, and those of a second one.
    static FASTNORM_FN __m512i upper_words() {
        return _mm512_setr_epi32(0x00030001, 0x00070005, 0x000b0009, 0x000f000d, 0x00130011,
                                 0x00170015, 0x001b0019, 0x001f001d, 0x00230021, 0x00270025,
                                 0x002b0029, 0x002f002d, 0x00330031, 0x00370035, 0x003b0039,
                                 0x003f003d);
    }
};

template <>
struct Vec<double> {
    using Scalar = double;
    static constexpr int width = 8;
    static constexpr bool unroll = true;

    struct Mask {
        __mmask8 m;
        friend FASTNORM_FN Mask operator&(Mask a, Mask b) { return {_kand_mask8(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator|(Mask a, Mask b) { return {_kor_mask8(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator!(Mask a) { return {_knot_mask8(a.m)}; }
        friend FASTNORM_FN unsigned bits(Mask a) { return a.m; }
    };

    __m512d v;

    FASTNORM_FN Vec() : v(_mm512_setzero_pd()) {}
    FASTNORM_FN explicit Vec(double x) : v(_mm512_set1_pd(x)) {}
    FASTNORM_FN Vec(__m512d x) : v(x) {}

    static FASTNORM_FN __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
    static FASTNORM_FN Mask mask(unsigned bits) { return {static_cast<__mmask8>(bits)}; }

    static FASTNORM_FN Vec load(const double* p) { return _mm512_loadu_pd(p); }
    static FASTNORM_FN Vec load(const double* p, int n) {
        return _mm512_maskz_loadu_pd(first(n), p);
    }
    FASTNORM_FN void store(double* p) const { _mm512_storeu_pd(p, v); }
    FASTNORM_FN void store(double* p, int n) const { _mm512_mask_storeu_pd(p, first(n), v); }

    FASTNORM_FN void stream(double* p) const { _mm512_stream_pd(p, v); }

    friend FASTNORM_FN Vec operator+(Vec a, Vec b) { return _mm512_add_pd(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a, Vec b) { return _mm512_sub_pd(a.v, b.v); }
    friend FASTNORM_FN Vec operator*(Vec a, Vec b) { return _mm512_mul_pd(a.v, b.v); }
    friend FASTNORM_FN Vec operator/(Vec a, Vec b) { return _mm512_div_pd(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a) { return -a.v; }
    friend FASTNORM_FN Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_pd(a.v, b.v, c.v); }
    friend FASTNORM_FN Vec abs(Vec a) { return _mm512_abs_pd(a.v); }
    friend FASTNORM_FN Vec low_bits_as_exponent(Vec a) {
        return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(a.v), 52));
    }
    friend FASTNORM_FN Vec at_least(Vec a, double lowest) {
        return _mm512_max_pd(_mm512_set1_pd(lowest), a.v);
    }
    friend FASTNORM_FN Vec at_most(Vec a, double highest) {
        return _mm512_min_pd(_mm512_set1_pd(highest), a.v);
    }
    friend FASTNORM_FN Mask operator<(Vec a, Vec b) {
        return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ)};
    }
    friend FASTNORM_FN Mask operator<=(Vec a, Vec b) {
        return {_mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ)};
    }
    friend FASTNORM_FN Mask operator>(Vec a, Vec b) { return b < a; }
    friend FASTNORM_FN Mask operator>=(Vec a, Vec b) { return b <= a; }
    friend FASTNORM_FN Vec select(Mask m, Vec a, Vec b) {
        return _mm512_mask_blend_pd(m.m, b.v, a.v);
    }
    friend FASTNORM_FN Vec keep_first(Vec a, int n) { return _mm512_maskz_mov_pd(first(n), a.v); }
    friend FASTNORM_FN double sum(Vec a) {
        const __m256d four =
            _mm256_add_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1));
        const __m128d halves =
            _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
        return _mm_cvtsd_f64(_mm_add_sd(halves, _mm_unpackhi_pd(halves, halves)));
    }
};

inline constexpr int stream_alignment = 64;
FASTNORM_FN void stream_line(void* to, const void* from) {
    _mm512_stream_ps(static_cast<float*>(to), _mm512_loadu_ps(from));
}
FASTNORM_FN void stream_fence() { _mm_sfence(); }

}  // namespace fastnorm::avx512
