// NEON of any 64-bit ARM (ARMv8.0-A): 4 floats or 2 doubles. README.md beside this file says what a
// Vec is.
#pragma once

#include <arm_neon.h>

#include "core/dtypes.h"

namespace fastnorm::neon {

template <class A>
struct Vec;

template <>
struct Vec<float> {
    using Scalar = float;
    static constexpr int width = 4;
    static constexpr bool unroll = true;

    struct Mask {
        uint32x4_t m;
        friend FASTNORM_FN Mask operator&(Mask a, Mask b) { return {vandq_u32(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator|(Mask a, Mask b) { return {vorrq_u32(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator!(Mask a) { return {vmvnq_u32(a.m)}; }
        friend FASTNORM_FN unsigned bits(Mask a) { return vaddvq_u32(vandq_u32(a.m, lane_bit())); }
    };

    float32x4_t v;

    FASTNORM_FN Vec() : v(vdupq_n_f32(0)) {}
    FASTNORM_FN explicit Vec(float x) : v(vdupq_n_f32(x)) {}
    FASTNORM_FN Vec(float32x4_t x) : v(x) {}

    static FASTNORM_FN uint32x4_t lane_bit() { return uint32x4_t{1, 2, 4, 8}; }
    static FASTNORM_FN uint32x4_t first(int n) {
        return vcgtq_s32(vdupq_n_s32(n), int32x4_t{0, 1, 2, 3});
    }
    static FASTNORM_FN Mask mask(unsigned bits) {
        return {vtstq_u32(vdupq_n_u32(bits), lane_bit())};
    }

    static FASTNORM_FN Vec load(const float* p) { return vld1q_f32(p); }
    static FASTNORM_FN Vec load(const float* p, int n) {
        if (n == width) return load(p);
        float32x4_t x = vdupq_n_f32(0);
        if (n == 1) return vld1q_lane_f32(p, x, 0);
        if (n >= 2) x = vcombine_f32(vld1_f32(p), vdup_n_f32(0));
        if (n == 3) x = vld1q_lane_f32(p + 2, x, 2);
        return x;
    }
    static FASTNORM_FN Vec load(const Half* p) { return widen(p, vld1_u16(&p->bits)); }
    static FASTNORM_FN Vec load(const Half* p, int n) { return widen(p, load_words(p, n)); }
    static FASTNORM_FN Vec load(const BFloat16* p) { return widen(p, vld1_u16(&p->bits)); }
    static FASTNORM_FN Vec load(const BFloat16* p, int n) { return widen(p, load_words(p, n)); }

    FASTNORM_FN void store(float* p) const { vst1q_f32(p, v); }
    FASTNORM_FN void store(float* p, int n) const {
        if (n == width) return store(p);
        if (n == 1) vst1q_lane_f32(p, v, 0);
        if (n >= 2) vst1_f32(p, vget_low_f32(v));
        if (n == 3) vst1q_lane_f32(p + 2, v, 2);
    }
    FASTNORM_FN void store(Half* p) const { vst1_u16(&p->bits, narrow(p)); }
    FASTNORM_FN void store(Half* p, int n) const { store_words(p, narrow(p), n); }
    FASTNORM_FN void store(BFloat16* p) const { vst1_u16(&p->bits, narrow(p)); }
    FASTNORM_FN void store(BFloat16* p, int n) const { store_words(p, narrow(p), n); }

    // Half a pair: a lone vector has no instruction of this kind.
    template <class T>
    FASTNORM_FN void stream(T* p) const {
        store(p);
    }

    friend FASTNORM_FN Vec operator+(Vec a, Vec b) { return vaddq_f32(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a, Vec b) { return vsubq_f32(a.v, b.v); }
    friend FASTNORM_FN Vec operator*(Vec a, Vec b) { return vmulq_f32(a.v, b.v); }
    friend FASTNORM_FN Vec operator/(Vec a, Vec b) { return vdivq_f32(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a) { return vnegq_f32(a.v); }
    friend FASTNORM_FN Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c.v, a.v, b.v); }
    friend FASTNORM_FN Vec abs(Vec a) { return vabsq_f32(a.v); }
    friend FASTNORM_FN Vec low_bits_as_exponent(Vec a) {
        return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(a.v), 23));
    }
    friend FASTNORM_FN Mask operator<(Vec a, Vec b) { return {vcltq_f32(a.v, b.v)}; }
    friend FASTNORM_FN Mask operator<=(Vec a, Vec b) { return {vcleq_f32(a.v, b.v)}; }
    friend FASTNORM_FN Mask operator>(Vec a, Vec b) { return b < a; }
    friend FASTNORM_FN Mask operator>=(Vec a, Vec b) { return b <= a; }
    friend FASTNORM_FN Vec select(Mask m, Vec a, Vec b) { return vbslq_f32(m.m, a.v, b.v); }
    friend FASTNORM_FN Vec keep_first(Vec a, int n) {
        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.v), first(n)));
    }
    friend FASTNORM_FN float sum(Vec a) {
        const float32x2_t halves = vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v));
        return vget_lane_f32(halves, 0) + vget_lane_f32(halves, 1);
    }

  private:
    template <class T>
    static FASTNORM_FN uint16x4_t load_words(const T* p, int n) {
        if (n == width) return vld1_u16(&p->bits);
        uint16x4_t words = vdup_n_u16(0);
        if (n >= 1) words = vld1_lane_u16(&p[0].bits, words, 0);
        if (n >= 2) words = vld1_lane_u16(&p[1].bits, words, 1);
        if (n >= 3) words = vld1_lane_u16(&p[2].bits, words, 2);
        return words;
    }
    template <class T>
    static FASTNORM_FN void store_words(T* p, uint16x4_t words, int n) {
        if (n == width) return vst1_u16(&p->bits, words);
        if (n >= 1) vst1_lane_u16(&p[0].bits, words, 0);
        if (n >= 2) vst1_lane_u16(&p[1].bits, words, 1);
        if (n >= 3) vst1_lane_u16(&p[2].bits, words, 2);
    }
    static FASTNORM_FN Vec widen(const Half*, uint16x4_t words) {
        return vcvt_f32_f16(vreinterpret_f16_u16(words));
    }
    static FASTNORM_FN Vec widen(const BFloat16*, uint16x4_t words) {
        return vreinterpretq_f32_u32(vshll_n_u16(words, 16));
    }
    FASTNORM_FN uint16x4_t narrow(Half*) const { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
    FASTNORM_FN uint16x4_t narrow(BFloat16*) const {
        const uint32x4_t u = vreinterpretq_u32_f32(v);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
        const uint32x4_t bias = vaddq_u32(odd, vdupq_n_u32(0x7fff));
        const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
        return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), vaddq_u32(u, bias), quiet), 16);
    }
};

template <>
struct Vec<double> {
    using Scalar = double;
    static constexpr int width = 2;
    static constexpr bool unroll = true;

    struct Mask {
        uint64x2_t m;
        friend FASTNORM_FN Mask operator&(Mask a, Mask b) { return {vandq_u64(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator|(Mask a, Mask b) { return {vorrq_u64(a.m, b.m)}; }
        friend FASTNORM_FN Mask operator!(Mask a) {
            return {veorq_u64(a.m, vdupq_n_u64(~std::uint64_t{0}))};
        }
        friend FASTNORM_FN unsigned bits(Mask a) {
            return static_cast<unsigned>(vaddvq_u64(vandq_u64(a.m, lane_bit())));
        }
    };

    float64x2_t v;

    FASTNORM_FN Vec() : v(vdupq_n_f64(0)) {}
    FASTNORM_FN explicit Vec(double x) : v(vdupq_n_f64(x)) {}
    FASTNORM_FN Vec(float64x2_t x) : v(x) {}

    static FASTNORM_FN uint64x2_t lane_bit() { return uint64x2_t{1, 2}; }
    static FASTNORM_FN uint64x2_t first(int n) {
        return vcgtq_s64(vdupq_n_s64(n), int64x2_t{0, 1});
    }
    static FASTNORM_FN Mask mask(unsigned bits) {
        return {vtstq_u64(vdupq_n_u64(bits), lane_bit())};
    }

    static FASTNORM_FN Vec load(const double* p) { return vld1q_f64(p); }
    static FASTNORM_FN Vec load(const double* p, int n) {
        if (n == width) return load(p);
        const float64x2_t zero = vdupq_n_f64(0);
        return n == 1 ? vld1q_lane_f64(p, zero, 0) : zero;
    }
    FASTNORM_FN void store(double* p) const { vst1q_f64(p, v); }
    FASTNORM_FN void store(double* p, int n) const {
        if (n == width) return store(p);
        if (n == 1) vst1q_lane_f64(p, v, 0);
    }

    FASTNORM_FN void stream(double* p) const { store(p); }

    friend FASTNORM_FN Vec operator+(Vec a, Vec b) { return vaddq_f64(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a, Vec b) { return vsubq_f64(a.v, b.v); }
    friend FASTNORM_FN Vec operator*(Vec a, Vec b) { return vmulq_f64(a.v, b.v); }
    friend FASTNORM_FN Vec operator/(Vec a, Vec b) { return vdivq_f64(a.v, b.v); }
    friend FASTNORM_FN Vec operator-(Vec a) { return vnegq_f64(a.v); }
    friend FASTNORM_FN Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f64(c.v, a.v, b.v); }
    friend FASTNORM_FN Vec abs(Vec a) { return vabsq_f64(a.v); }
    friend FASTNORM_FN Vec low_bits_as_exponent(Vec a) {
        return vreinterpretq_f64_s64(vshlq_n_s64(vreinterpretq_s64_f64(a.v), 52));
    }
    friend FASTNORM_FN Mask operator<(Vec a, Vec b) { return {vcltq_f64(a.v, b.v)}; }
    friend FASTNORM_FN Mask operator<=(Vec a, Vec b) { return {vcleq_f64(a.v, b.v)}; }
    friend FASTNORM_FN Mask operator>(Vec a, Vec b) { return b < a; }
    friend FASTNORM_FN Mask operator>=(Vec a, Vec b) { return b <= a; }
    friend FASTNORM_FN Vec select(Mask m, Vec a, Vec b) { return vbslq_f64(m.m, a.v, b.v); }
    friend FASTNORM_FN Vec keep_first(Vec a, int n) {
        return vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(a.v), first(n)));
    }
    friend FASTNORM_FN double sum(Vec a) { return vgetq_lane_f64(a.v, 0) + vgetq_lane_f64(a.v, 1); }
};

// No intrinsic gives STNP. It is a hint not to allocate the line; a core that ignores it still
// sees four stores that fill a line and need not read it first.
inline constexpr int stream_alignment = 64;
FASTNORM_FN void stream_line(void* to, const void* from) {
    const auto* source = static_cast<const std::uint8_t*>(from);
    asm volatile(
        "stnp %q1, %q2, [%0]\n\t"
        "stnp %q3, %q4, [%0, #32]"
        :
        : "r"(to), "w"(vld1q_u8(source)), "w"(vld1q_u8(source + 16)), "w"(vld1q_u8(source + 32)),
          "w"(vld1q_u8(source + 48))
        : "memory");
}
// STNP is ordered like any other store: the release at the end of a parallel loop covers it.
FASTNORM_FN void stream_fence() {}

}  // namespace fastnorm::neon
