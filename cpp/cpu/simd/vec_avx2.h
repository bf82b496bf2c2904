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

    friend FASTNORM_FN Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a) { return _mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f)); }
    friend FASTNORM_FN Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
    friend FASTNORM_FN Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
    friend FASTNORM_FN Vec round_nearest(Vec a) {
        return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    friend FASTNORM_FN Vec exp2_int(Vec n) {
        const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
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
    static FASTNORM_FN Vec widen(const BFloat16*, __m128i words) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
    }
    FASTNORM_FN __m128i narrow(Half*) const {
        return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    FASTNORM_FN __m128i narrow(BFloat16*) const {
        const __m256i u = _mm256_castps_si256(v);
        const __m256i high = _mm256_srli_epi32(u, 16);
        const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, bias), 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, nan);
        return _mm_packus_epi32(_mm256_castsi256_si128(chosen),
                                _mm256_extracti128_si256(chosen, 1));
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
    friend FASTNORM_FN Vec operator-(Vec a) { return _mm256_xor_pd(a.v, _mm256_set1_pd(-0.0)); }
    friend FASTNORM_FN Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_pd(a.v, b.v, c.v); }
    friend FASTNORM_FN Vec abs(Vec a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v); }
    friend FASTNORM_FN Vec round_nearest(Vec a) {
        return _mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    friend FASTNORM_FN Vec exp2_int(Vec n) {
        const __m256i integral = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n.v));
        const __m256i biased = _mm256_add_epi64(integral, _mm256_set1_epi64x(1023));
        return _mm256_castsi256_pd(_mm256_slli_epi64(biased, 52));
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
