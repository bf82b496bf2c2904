// The limit: the fastest way to read one or two arrays and write one or two, in several manners of
// which the benchmark takes the best. No arithmetic but what keeps the reads from being dropped.
#include <immintrin.h>
#include <omp.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
using Vec = __m512i;
inline Vec load(const char* p) { return _mm512_loadu_si512(p); }
inline Vec mix(Vec a, Vec b) { return _mm512_xor_si512(a, b); }
inline void store(char* p, Vec v) { _mm512_storeu_si512(p, v); }
inline void stream(char* p, Vec v) { _mm512_stream_si512(reinterpret_cast<__m512i*>(p), v); }
#elif defined(__AVX__)
using Vec = __m256i;
inline Vec load(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const Vec*>(p)); }
inline Vec mix(Vec a, Vec b) {
    return _mm256_castps_si256(_mm256_xor_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)));
}
inline void store(char* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<Vec*>(p), v); }
inline void stream(char* p, Vec v) { _mm256_stream_si256(reinterpret_cast<Vec*>(p), v); }
#else
using Vec = __m128i;
inline Vec load(const char* p) { return _mm_loadu_si128(reinterpret_cast<const Vec*>(p)); }
inline Vec mix(Vec a, Vec b) { return _mm_xor_si128(a, b); }
inline void store(char* p, Vec v) { _mm_storeu_si128(reinterpret_cast<Vec*>(p), v); }
inline void stream(char* p, Vec v) { _mm_stream_si128(reinterpret_cast<Vec*>(p), v); }
#endif

constexpr std::size_t line = 64;

struct Arrays {
    const char* in[2];
    char* out[2];
};

// How far ahead lines are fetched into L2, where they are.
constexpr std::size_t ahead = 4096;

template <int reads, int writes, bool past_the_cache, bool fetches>
void move(const Arrays& a, std::size_t from, std::size_t to) {
    for (std::size_t i = from; i < to; i += line) {
        for (int k = 0; fetches && k < reads; ++k) _mm_prefetch(a.in[k] + i + ahead, _MM_HINT_T1);
        for (std::size_t j = i; j < i + line; j += sizeof(Vec)) {
            Vec v = load(a.in[0] + j);
            if (reads == 2) v = mix(v, load(a.in[1] + j));
            for (int k = 0; k < writes; ++k) {
                if (past_the_cache) {
                    stream(a.out[k] + j, v);
                } else {
                    store(a.out[k] + j, v);
                }
            }
        }
    }
    if (past_the_cache) _mm_sfence();
}

template <int reads, int writes>
void piece(const Arrays& a, std::size_t from, std::size_t to, int manner) {
    if (manner == 0) move<reads, writes, false, false>(a, from, to);
    if (manner == 1) move<reads, writes, true, false>(a, from, to);
    if (manner == 2) std::memcpy(a.out[0] + from, a.in[0] + from, to - from);
    if (manner == 3) move<reads, writes, true, true>(a, from, to);
}

void dispatch(int reads, int writes, const Arrays& a, std::size_t from, std::size_t to,
              int manner) {
    if (reads == 1 && writes == 1) piece<1, 1>(a, from, to, manner);
    if (reads == 2 && writes == 1) piece<2, 1>(a, from, to, manner);
    if (reads == 2 && writes == 2) piece<2, 2>(a, from, to, manner);
}

}  // namespace

// Reads and writes bytes of each array; out is aligned to 64. manner: 0 plain stores, 1 stores past
// the cache, 2 memcpy (one read, one write), 3 stores past the cache of what was fetched ahead.
// block: each thread takes one stretch (0), or all take blocks of so many bytes in turns.
extern "C" void bandwidth_move(const char* in0, const char* in1, char* out0, char* out1,
                               std::size_t bytes, int manner, std::size_t block, int threads) {
    const Arrays a{{in0, in1}, {out0, out1}};
    const int reads = in1 == nullptr ? 1 : 2;
    const int writes = out1 == nullptr ? 1 : 2;
    const std::size_t whole = bytes / line * line;
    const std::size_t share = (whole / static_cast<std::size_t>(threads) + line) / line * line;
    const std::size_t step = block == 0 ? share : block;
    const auto run = [&](std::size_t i) {
        const std::size_t to = (i + 1) * step < whole ? (i + 1) * step : whole;
        dispatch(reads, writes, a, i * step, to, manner);
    };
    const std::size_t blocks = (whole + step - 1) / step;
    if (threads == 1) {
        for (std::size_t i = 0; i < blocks; ++i) run(i);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (std::size_t i = 0; i < blocks; ++i) run(i);
}
