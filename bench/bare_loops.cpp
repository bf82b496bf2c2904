// What a normalization takes beside memory: loops with its arithmetic and nothing else, in the
// simplest order. No part of a vector, no array that does not begin with a cache line, no mean far
// from zero, no infinity, no epilogue or dtype but those of the benchmark's cases; sums in float32,
// an exponential of six digits. What a library takes longer is what its generality and accuracy
// cost, or a defect of it; what it takes less, its order of doing things.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int width = 16;
#else
constexpr int width = 8;
#endif
typedef float V __attribute__((vector_size(4 * width), may_alias));
typedef std::int32_t I __attribute__((vector_size(4 * width)));
typedef std::uint32_t U __attribute__((vector_size(4 * width)));
typedef std::uint16_t H __attribute__((vector_size(2 * width), may_alias));

using Bits = std::uint16_t;  // of a bfloat16

inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }
inline V load(const Bits* p) {
    return reinterpret_cast<V>(__builtin_convertvector(*reinterpret_cast<const H*>(p), U) << 16);
}
inline H rounded(V v) {
    const U u = reinterpret_cast<U>(v);
    return __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, H);
}
template <bool past, class Part>
inline void put(void* p, Part part) {
    if constexpr (!past) {
        *static_cast<Part*>(p) = part;
    } else if constexpr (sizeof(Part) == 16) {
        _mm_stream_si128(static_cast<__m128i*>(p), reinterpret_cast<__m128i>(part));
    } else if constexpr (sizeof(Part) == 32) {
        _mm256_stream_si256(static_cast<__m256i*>(p), reinterpret_cast<__m256i>(part));
    } else {
#if defined(__AVX512F__)
        _mm512_stream_si512(static_cast<__m512i*>(p), reinterpret_cast<__m512i>(part));
#endif
    }
}
template <bool past>
inline void store(float* p, V v) {
    put<past>(p, v);
}
template <bool past>
inline void store(Bits* p, V v) {
    put<past>(p, rounded(v));
}
inline void fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p) + 4096, _MM_HINT_T1); }
inline float sum(V v) {
    float total = 0;
    for (int i = 0; i < width; ++i) total += v[i];
    return total;
}
inline V broadcast(float x) { return x - V{}; }

inline V sigmoid(V z) {
    const V t = z * -1.44269504f;  // exp(-z) = 2^t
    const V bounded = t < -126 ? broadcast(-126) : t > 126 ? broadcast(126) : t;
    const V magic = broadcast(0x1.8p23f), sum = bounded + magic, f = bounded - (sum - magic);
    const V p =
        1 + f * (0.69314718f +
                 f * (0.24022651f + f * (0.05550411f + f * (0.00961813f + f * 0.00133336f))));
    const I power = reinterpret_cast<I>(p) + (reinterpret_cast<I>(sum) << 23);
    return 1 / (1 + reinterpret_cast<V>(power));
}
template <bool silu>
inline V activated(V z) {
    return silu ? z * sigmoid(z) : z;
}
template <bool silu>
inline V slope(V z) {
    if (!silu) return broadcast(1);
    const V s = sigmoid(z);
    return s * (1 + z * (1 - s));
}

// Several vectors in turns, whose operations do not wait for each other.
template <class F>
inline void each(std::int64_t n, F&& f) {
    std::int64_t i = 0;
    for (; i + 4 * width <= n; i += 4 * width) {
        for (int k = 0; k < 4; ++k) f(i + k * width, k);
    }
    for (; i < n; i += width) f(i, 0);
}
struct Sums {
    V part[4] = {};
    float total() const { return sum((part[0] + part[1]) + (part[2] + part[3])); }
};

}  // namespace

// x, dy, out, weight and bias begin with a line. Statistics are backward's alone; what vectors run
// along is whole vectors.
struct BareProblem {
    const void *x, *dy;
    void* out;
    const float *weight, *bias, *mean, *rstd;  // bias, mean: or null
    float *dweight, *dbias;
    std::int64_t samples, groups, channels, pixels;  // rows: samples of one group of features
    float eps;
    int backward, silu, past, threads;
};

namespace {

using Problem = BareProblem;

template <class T, bool past, bool centred>
void rows_forward(const Problem& p, std::int64_t from, std::int64_t to) {
    const std::int64_t n = p.channels;
    for (std::int64_t r = from; r < to; ++r) {
        const T* const x = static_cast<const T*>(p.x) + r * n;
        T* const y = static_cast<T*>(p.out) + r * n;
        Sums sums, squares;
        if (centred) {
            each(n, [&](std::int64_t i, int k) {
                fetch(x + i);
                sums.part[k] += load(x + i);
            });
        }
        const V mean = broadcast(sums.total() / static_cast<float>(n));
        each(n, [&](std::int64_t i, int k) {
            if (!centred) fetch(x + i);
            const V d = load(x + i) - mean;
            squares.part[k] += d * d;
        });
        const V rstd = broadcast(1 / std::sqrt(squares.total() / static_cast<float>(n) + p.eps));
        each(n, [&](std::int64_t i, int) {
            const V z = (load(x + i) - mean) * rstd * load(p.weight + i);
            store<past>(y + i, centred ? z + load(p.bias + i) : z);
        });
    }
}

template <class T, bool past, bool centred>
void rows_backward(const Problem& p, std::int64_t from, std::int64_t to, float* dweight,
                   float* dbias) {
    const std::int64_t n = p.channels;
    for (std::int64_t r = from; r < to; ++r) {
        const T* const x = static_cast<const T*>(p.x) + r * n;
        const T* const dy = static_cast<const T*>(p.dy) + r * n;
        T* const dx = static_cast<T*>(p.out) + r * n;
        const V mean = broadcast(centred ? p.mean[r] : 0.0f), rstd = broadcast(p.rstd[r]);
        Sums of_g, of_gx;
        each(n, [&](std::int64_t i, int k) {
            fetch(x + i);
            fetch(dy + i);
            const V g = load(dy + i) * load(p.weight + i);
            of_g.part[k] += g;
            of_gx.part[k] += g * (load(x + i) - mean);
        });
        const V a = broadcast(centred ? of_g.total() / static_cast<float>(n) : 0.0f);
        const V b = broadcast(of_gx.total() / static_cast<float>(n)) * rstd;
        each(n, [&](std::int64_t i, int) {
            const V d = load(dy + i), z = (load(x + i) - mean) * rstd;
            store<past>(dx + i, (d * load(p.weight + i) - a - z * b) * rstd);
            *reinterpret_cast<V*>(dweight + i) += d * z;
            if (centred) *reinterpret_cast<V*>(dbias + i) += d;
        });
    }
}

template <class T, bool past, bool silu>
void planes_forward(const Problem& p, std::int64_t from, std::int64_t to) {
    const std::int64_t each_group = p.channels / p.groups, n = each_group * p.pixels;
    for (std::int64_t u = from; u < to; ++u) {
        const T* const x = static_cast<const T*>(p.x) + u * n;
        T* const y = static_cast<T*>(p.out) + u * n;
        Sums sums, squares;
        each(n, [&](std::int64_t i, int k) {
            fetch(x + i);
            const V v = load(x + i);
            sums.part[k] += v;
            squares.part[k] += v * v;
        });
        const float mean = sums.total() / static_cast<float>(n);
        const float var = squares.total() / static_cast<float>(n) - mean * mean;
        const float rstd = 1 / std::sqrt(var + p.eps);
        for (std::int64_t c = 0; c < each_group; ++c) {
            const std::int64_t channel = u % p.groups * each_group + c;
            const V a = broadcast(p.weight[channel] * rstd);
            const V b = broadcast(p.bias[channel] - mean * a[0]);
            each(p.pixels, [&](std::int64_t i, int) {
                const std::int64_t at = c * p.pixels + i;
                store<past>(y + at, activated<silu>(load(x + at) * a + b));
            });
        }
    }
}

template <class T, bool past, bool silu>
void planes_backward(const Problem& p, std::int64_t from, std::int64_t to, float* dweight,
                     float* dbias) {
    const std::int64_t each_group = p.channels / p.groups, n = each_group * p.pixels;
    for (std::int64_t u = from; u < to; ++u) {
        const T* const x = static_cast<const T*>(p.x) + u * n;
        const T* const dy = static_cast<const T*>(p.dy) + u * n;
        T* const dx = static_cast<T*>(p.out) + u * n;
        const float mean = p.mean[u], rstd = p.rstd[u];
        float of_g = 0, of_gx = 0;
        const auto channels = [&](auto&& use) {
            for (std::int64_t c = 0; c < each_group; ++c) {
                const std::int64_t channel = u % p.groups * each_group + c;
                const float a = p.weight[channel] * rstd, b = p.bias[channel] - mean * a;
                use(c * p.pixels, channel, broadcast(a), broadcast(b));
            }
        };
        channels([&](std::int64_t at, std::int64_t channel, V a, V b) {
            Sums g_sums, gx_sums;
            each(p.pixels, [&](std::int64_t i, int k) {
                fetch(x + at + i);
                fetch(dy + at + i);
                const V v = load(x + at + i), g = load(dy + at + i) * slope<silu>(v * a + b);
                g_sums.part[k] += g;
                gx_sums.part[k] += g * (v - mean);
            });
            const float g = g_sums.total(), gx = gx_sums.total() * rstd;
            dbias[channel] += g;
            dweight[channel] += gx;
            of_g += p.weight[channel] * g / static_cast<float>(n);
            of_gx += p.weight[channel] * gx / static_cast<float>(n);
        });
        const V by_x = broadcast(-of_gx * rstd * rstd),
                rest = broadcast((of_gx * rstd * mean - of_g) * rstd);
        channels([&](std::int64_t at, std::int64_t, V a, V b) {
            each(p.pixels, [&](std::int64_t i, int) {
                const V v = load(x + at + i), g = load(dy + at + i) * slope<silu>(v * a + b);
                store<past>(dx + at + i, g * a + (v * by_x + rest));
            });
        });
    }
}

// Numbers of each channel: the sums of g (forward: x) and of its product with x, and coefficients.
struct OfChannels {
    std::vector<float> memory;
    float *g, *gx, *scale, *shift, *mean, *by_x, *rest;
    OfChannels(const OfChannels&) = delete;
    OfChannels(OfChannels&&) = default;
    explicit OfChannels(std::int64_t channels)
        : memory(static_cast<std::size_t>(7 * channels) + 16) {
        auto at = (reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64;
        for (float** array : {&g, &gx, &scale, &shift, &mean, &by_x, &rest}) {
            *array = reinterpret_cast<float*>(at);
            at += static_cast<std::uintptr_t>(channels) * sizeof(float);
        }
    }
};

// Of what is in the cache, so that sums are loaded and stored less often; what comes from memory is
// read in its order.
constexpr int rows_together = 4;

// Calls f(row, count, channel) for some rows at a time, all their channels.
template <class F>
inline void pixels_of(std::int64_t from, std::int64_t to, std::int64_t channels, bool past, F&& f) {
    std::int64_t row = from;
    for (; !past && row + rows_together <= to; row += rows_together) {
        for (std::int64_t c = 0; c < channels; c += width) {
            f(row, std::integral_constant<int, rows_together>(), c);
        }
    }
    for (; row < to; ++row) {
        for (std::int64_t c = 0; c < channels; c += width) {
            f(row, std::integral_constant<int, 1>(), c);
        }
    }
}

inline V& at(float* p) { return *reinterpret_cast<V*>(p); }

template <class T, bool silu>
void columns_sums(const Problem& p, std::int64_t sample, std::int64_t from, std::int64_t to,
                  OfChannels& channels) {
    const std::int64_t n = p.channels;
    const T* const x = static_cast<const T*>(p.x) + sample * p.pixels * n;
    const T* const dy = static_cast<const T*>(p.dy) + sample * p.pixels * n;
    std::fill(channels.g, channels.g + n, 0.0f);
    std::fill(channels.gx, channels.gx + n, 0.0f);
    if (p.backward) {
        for (std::int64_t c = 0; c < n; ++c) {
            const std::int64_t u = sample * p.groups + c * p.groups / n;
            channels.scale[c] = p.weight[c] * p.rstd[u];
            channels.shift[c] = p.bias[c] - p.mean[u] * channels.scale[c];
            channels.mean[c] = p.mean[u];
        }
    }
    pixels_of(from, to, n, p.past != 0, [&](std::int64_t row, auto count, std::int64_t c) {
        V a = at(channels.g + c), b = at(channels.gx + c);
        for (int r = 0; r < count; ++r) {
            const std::int64_t i = (row + r) * n + c;
            fetch(x + i);
            V v = load(x + i), g = v;
            if (p.backward) {
                fetch(dy + i);
                g = load(dy + i) * slope<silu>(v * at(channels.scale + c) + at(channels.shift + c));
                v -= at(channels.mean + c);
            }
            a += g;
            b += g * v;
        }
        at(channels.g + c) = a;
        at(channels.gx + c) = b;
    });
}

// The coefficients of the map from the sums of all parts of a sample.
void finish_columns(const Problem& p, std::int64_t sample, std::vector<OfChannels>& parts,
                    OfChannels& channels) {
    const std::int64_t n = p.channels, each_group = n / p.groups;
    const float values = static_cast<float>(each_group * p.pixels);
    for (std::int64_t g = 0; g < p.groups; ++g) {
        float a = 0, b = 0;
        for (std::int64_t c = g * each_group; c < (g + 1) * each_group; ++c) {
            const float weight = p.backward ? p.weight[c] : 1.0f;
            for (OfChannels& part : parts) {
                a += weight * part.g[c] / values;
                b += weight * part.gx[c] / values;
            }
        }
        const std::int64_t u = sample * p.groups + g;
        const float mean = p.backward ? p.mean[u] : a;
        const float rstd = p.backward ? p.rstd[u] : 1 / std::sqrt(b - a * a + p.eps);
        for (std::int64_t c = g * each_group; c < (g + 1) * each_group; ++c) {
            channels.scale[c] = p.weight[c] * rstd;
            channels.shift[c] = p.bias[c] - mean * channels.scale[c];
            if (!p.backward) continue;
            channels.by_x[c] = -b * rstd * rstd * rstd;
            channels.rest[c] = (b * rstd * rstd * mean - a) * rstd;
        }
    }
}

template <class T, bool past, bool silu>
void columns_map(const Problem& p, std::int64_t sample, std::int64_t from, std::int64_t to,
                 OfChannels& channels) {
    const std::int64_t n = p.channels, offset = sample * p.pixels * n;
    const T* const x = static_cast<const T*>(p.x) + offset;
    const T* const dy = static_cast<const T*>(p.dy) + offset;
    T* const out = static_cast<T*>(p.out) + offset;
    for (std::int64_t row = from; row < to; ++row) {
        each(n, [&](std::int64_t c, int) {
            const std::int64_t i = row * n + c;
            fetch(x + i);
            if (p.backward) fetch(dy + i);
            const V v = load(x + i), a = at(channels.scale + c), z = v * a + at(channels.shift + c);
            if (p.backward) {
                const V g = load(dy + i) * slope<silu>(z);
                store<past>(out + i, g * a + (v * at(channels.by_x + c) + at(channels.rest + c)));
            } else {
                store<past>(out + i, activated<silu>(z));
            }
        });
    }
}

template <class T, bool past, bool flag>
void run(const Problem& problem, int layout) {
    const Problem p = problem;  // so that stores to memory are not taken for stores to it
    const std::int64_t units = layout == 0 ? p.samples : p.samples * p.groups;
    std::vector<OfChannels> parts, sums;  // of zeros
    for (int t = 0; t < p.threads; ++t) {
        parts.emplace_back(p.channels);
        sums.emplace_back(p.channels);
    }
#pragma omp parallel num_threads(p.threads)
    {
        const int thread = omp_get_thread_num();
        auto& part = parts[static_cast<std::size_t>(thread)];
        auto& sum = sums[static_cast<std::size_t>(thread)];
        const int team = omp_get_num_threads();  // which may be fewer than were asked for
        const auto share = [&](std::int64_t count, int before) { return count * before / team; };
        if (layout != 2) {
            const std::int64_t from = share(units, thread), to = share(units, thread + 1);
            if (layout == 0 && !p.backward) rows_forward<T, past, flag>(p, from, to);
            if (layout == 0 && p.backward) rows_backward<T, past, flag>(p, from, to, sum.gx, sum.g);
            if (layout == 1 && !p.backward) planes_forward<T, past, flag>(p, from, to);
            if (layout == 1 && p.backward)
                planes_backward<T, past, flag>(p, from, to, sum.gx, sum.g);
        } else {
            const std::int64_t from = share(p.pixels, thread), to = share(p.pixels, thread + 1);
            for (std::int64_t sample = 0; sample < p.samples; ++sample) {
                columns_sums<T, flag>(p, sample, from, to, part);
#pragma omp barrier
                OfChannels own(p.channels);
                finish_columns(p, sample, parts, own);
                if (p.backward) {
                    for (std::int64_t c = 0; c < p.channels; ++c) {
                        const std::int64_t u = sample * p.groups + c * p.groups / p.channels;
                        sum.gx[c] += part.gx[c] * p.rstd[u];
                        sum.g[c] += part.g[c];
                    }
                }
                columns_map<T, past, flag>(p, sample, from, to, own);
#pragma omp barrier
            }
        }
        if (past) _mm_sfence();
    }
    if (!p.backward) return;
    for (std::int64_t c = 0; c < p.channels; ++c) {
        p.dweight[c] = p.dbias[c] = 0;
        for (OfChannels& sum : sums) {
            p.dweight[c] += sum.gx[c];
            p.dbias[c] += sum.g[c];
        }
    }
}

template <class T, bool past>
void run(const Problem& p, int layout) {
    const bool flag = layout == 0 ? p.mean != nullptr || p.bias != nullptr : p.silu != 0;
    flag ? run<T, past, true>(p, layout) : run<T, past, false>(p, layout);
}

}  // namespace

// layout: 0 rows, 1 planes, 2 channels last. half: of bfloat16.
extern "C" void bare_run(const BareProblem* p, int layout, int half) {
    if (half) {
        p->past ? run<Bits, true>(*p, layout) : run<Bits, false>(*p, layout);
    } else {
        p->past ? run<float, true>(*p, layout) : run<float, false>(*p, layout);
    }
}
