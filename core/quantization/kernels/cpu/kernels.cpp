// Kernels for CPUs with a plain C interface: exact one-dimensional k-means, and products by table lookup.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// Prefix sums of weight, weight·value, weight·value² give the cost of any interval in constant time.
struct Row {
    std::vector<double> s0, s1, s2;

    void sum(const double* values, const double* weights, int64_t n) {
        s0.assign(n + 1, 0.0), s1.assign(n + 1, 0.0), s2.assign(n + 1, 0.0);
        for (int64_t i = 0; i < n; ++i) {
            const double w = weights[i], v = values[i];
            s0[i + 1] = s0[i] + w, s1[i + 1] = s1[i] + w * v, s2[i + 1] = s2[i] + w * v * v;
        }
    }

    double cost(int64_t left, int64_t right) const {
        const double mass = s0[right] - s0[left];
        if (mass <= 0) return 0.0;
        const double first = s1[right] - s1[left];
        const double rest = (s2[right] - s2[left]) - first * first / mass;
        return rest > 0 ? rest : 0.0;
    }
};

// Best last cut for every end in [low, high], knowing that cuts of the ends lie in [from, to]: it moves right with the end.
void divide(const Row& row, const std::vector<double>& before, std::vector<double>& after, int32_t* cut, int64_t low,
            int64_t high, int64_t from, int64_t to) {
    if (low > high) return;
    const int64_t middle = (low + high) / 2;
    double least = std::numeric_limits<double>::infinity();
    int64_t chosen = from;
    const int64_t last = middle < to ? middle : to;
    for (int64_t place = from; place <= last; ++place) {
        const double trial = before[place] + row.cost(place, middle);
        if (trial < least) least = trial, chosen = place;
    }
    after[middle] = least, cut[middle] = static_cast<int32_t>(chosen);
    divide(row, before, after, cut, low, middle - 1, from, chosen);
    divide(row, before, after, cut, middle + 1, high, chosen, to);
}

}  // namespace

// values, weights (rows, n), values ascending in a row; levels (rows, k) out, ascending.
extern "C" void graft_kmeans(const double* values, const double* weights, double* levels, int64_t rows, int64_t n,
                             int64_t k) {
    Row row;
    std::vector<double> before(n + 1), after(n + 1);
    std::vector<int32_t> cuts(k * (n + 1));
    for (int64_t r = 0; r < rows; ++r) {
        const double* v = values + r * n;
        row.sum(v, weights + r * n, n);
        for (int64_t end = 0; end <= n; ++end) before[end] = row.cost(0, end);
        for (int64_t number = 1; number < k; ++number) {
            divide(row, before, after, cuts.data() + number * (n + 1), 0, n, 0, n);
            before.swap(after);
        }
        int64_t right = n;
        for (int64_t number = k - 1; number >= 0; --number) {
            const int64_t left = number ? cuts[number * (n + 1) + right] : 0;
            const double mass = row.s0[right] - row.s0[left];
            const int64_t middle = (left + right) / 2 < n ? (left + right) / 2 : n - 1;
            levels[r * k + number] = mass > 0 ? (row.s1[right] - row.s1[left]) / mass : v[middle];
            right = left;
        }
    }
}

// ---- products by table lookup (T-MAC) ------------------------------------------------------------------------------
// With t = 2·bit − 1 a code is q = ½ (Σ 2^b t_b + 2^B − 1). Four activations have 16 signed sums, so four bits of one
// plane are an index into a table of 16 bytes, which is one register, and one shuffle looks up a whole vector.
//
// Weights lie as [rows / 64][steps][parts][step / 8][16][2]; inputs of one step share the step of their tables. A byte
// holds the indices of two quads, the first in its low nibble. Neighbours are two planes of one row, so that one product
// of bytes with (1, 2) adds both, and a pair of planes has four parts of 16 rows; the last plane of an odd number has two
// parts of 32, and its neighbours are the rows j and j + 16. Scales lie as [rows / 64][spans][64]; a span is so many
// steps.

namespace {

constexpr int TILE = 64;
// Tiles that one thread reads side by side: memory answers four streams sooner than one.
constexpr int STREAMS = 4;

// Sums of what the bytes of one part of each tile look up, times the factors of a word's low and high byte, into
// sums[64 · tile + 16 · factor]. A step of 128 inputs adds 32 products of at most 3 · 127 in 16 bits.
template <int FACTORS, int TILES>
void part_sums(const uint8_t* weights, int64_t apart, const int8_t* tables, int64_t bytes, const int16_t* factors,
               int16_t* sums) {
#if defined(__AVX2__)
    const auto load = [](const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); };
    const auto table = [](const int8_t* p) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    };
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i factor[FACTORS], total[TILES][FACTORS];
    for (int f = 0; f < FACTORS; ++f) factor[f] = _mm256_set1_epi16(factors[f]);
    for (int t = 0; t < TILES; ++t)
        for (int f = 0; f < FACTORS; ++f) total[t][f] = _mm256_setzero_si256();
    for (int64_t m = 0; m < bytes; ++m) {
        const __m256i first = table(tables + 32 * m), second = table(tables + 32 * m + 16);
        for (int t = 0; t < TILES; ++t) {
            const __m256i indices = load(weights + t * apart + 32 * m);
            const __m256i a = _mm256_shuffle_epi8(first, _mm256_and_si256(indices, nibble));
            const __m256i b = _mm256_shuffle_epi8(second, _mm256_and_si256(_mm256_srli_epi16(indices, 4), nibble));
            for (int f = 0; f < FACTORS; ++f)
                total[t][f] = _mm256_add_epi16(
                    total[t][f],
                    _mm256_add_epi16(_mm256_maddubs_epi16(factor[f], a), _mm256_maddubs_epi16(factor[f], b)));
        }
    }
    for (int t = 0; t < TILES; ++t)
        for (int f = 0; f < FACTORS; ++f) _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + TILE * t + 16 * f), total[t][f]);
#else
    for (int t = 0; t < TILES; ++t)
        for (int i = 0; i < 16 * FACTORS; ++i) {
            const int factor = factors[i / 16], low = factor & 255, high = factor >> 8;
            int total = 0;
            for (int64_t m = 0; m < bytes; ++m) {
                const uint8_t* pair = weights + t * apart + 32 * m + i % 16 * 2;
                const int8_t *first = tables + 32 * m, *second = first + 16;
                total += low * (first[pair[0] & 15] + second[pair[0] >> 4]);
                total += high * (first[pair[1] & 15] + second[pair[1] >> 4]);
            }
            sums[TILE * t + i] = static_cast<int16_t>(total);
        }
#endif
}

// Σ_b 2^b Σ t_b x over one step, in table units, for the rows of each tile.
template <int PLANES, int TILES>
void step_sums(const uint8_t* weights, int64_t apart, const int8_t* tables, int64_t step, int32_t* values) {
    constexpr int16_t planes[] = {0x0201}, rows[] = {0x0001, 0x0100};
    constexpr int PAIRS = PLANES / 2;
    const int64_t bytes = step / 8;
    alignas(64) int16_t sums[PAIRS + PLANES % 2][TILES * TILE];
    for (int p = 0; p < PAIRS; ++p)
        for (int part = 0; part < TILE; part += 16, weights += 32 * bytes)
            part_sums<1, TILES>(weights, apart, tables, bytes, planes, sums[p] + part);
    if (PLANES % 2)
        for (int part = 0; part < TILE; part += 32, weights += 32 * bytes)
            part_sums<2, TILES>(weights, apart, tables, bytes, rows, sums[PAIRS] + part);
    for (int i = 0; i < TILES * TILE; ++i) values[i] = sums[0][i] + (PLANES > 2 ? 4 * sums[PLANES > 2][i] : 0);
}

// The wide form, for processors that look up 64 bytes at once (VBMI) and add four products of bytes (VNNI): weights lie as
// [rows / 64][steps][planes][step / 32][64][4], so that the four bytes of a row hold quads 0 … 3 in their low nibbles
// and 4 … 7 in their high ones. The place of a byte is part of its index, four tables are one register, and a plane's
// weight is the factor of the sum.
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
constexpr bool WIDE = true;

template <int PLANES>
void wide_sums(const uint8_t* w, const int8_t* table, int64_t step, int32_t* values) {
    const __m512i nibble = _mm512_set1_epi8(15), place = _mm512_set1_epi32(0x30201000);
    const auto index = [&](__m512i v) { return _mm512_ternarylogic_epi32(v, nibble, place, 0xEA); };
    __m512i low[4], high[4];
    for (int r = 0; r < 4; ++r) low[r] = high[r] = _mm512_setzero_si512();
    for (int p = 0; p < PLANES; ++p) {
        const __m512i factor = _mm512_set1_epi8(static_cast<char>(1 << p));
        const int8_t* tables = table;
        for (int64_t m = 0; m < step; m += 32, tables += 128, w += 4 * TILE) {
            const __m512i first = _mm512_loadu_si512(tables), second = _mm512_loadu_si512(tables + 64);
            for (int r = 0; r < 4; ++r) {
                const __m512i indices = _mm512_loadu_si512(w + 64 * r);
                low[r] = _mm512_dpbusd_epi32(low[r], factor, _mm512_permutexvar_epi8(index(indices), first));
                const __m512i upper = index(_mm512_srli_epi16(indices, 4));
                high[r] = _mm512_dpbusd_epi32(high[r], factor, _mm512_permutexvar_epi8(upper, second));
            }
        }
    }
    for (int r = 0; r < 4; ++r) _mm512_storeu_si512(values + 16 * r, _mm512_add_epi32(low[r], high[r]));
}
#else
constexpr bool WIDE = false;

template <int PLANES>
void wide_sums(const uint8_t*, const int8_t*, int64_t, int32_t*);
#endif

// The 16 sums ±a ± b ± c ± d, rounded to the nearest: bit j of the place says that input j is added.
void sign_sums(float a, float b, float c, float d, int8_t* out) {
    alignas(32) static constexpr float SIGN[3][8] = {
        {-1, 1, -1, 1, -1, 1, -1, 1}, {-1, -1, 1, 1, -1, -1, 1, 1}, {-1, -1, -1, -1, 1, 1, 1, 1}};
#if defined(__AVX2__)
    const auto signed_ = [](int j, float v) { return _mm256_mul_ps(_mm256_load_ps(SIGN[j]), _mm256_set1_ps(v)); };
    const __m256 three = _mm256_add_ps(_mm256_add_ps(signed_(0, a), signed_(1, b)), signed_(2, c));
    const __m256i without = _mm256_cvtps_epi32(_mm256_sub_ps(three, _mm256_set1_ps(d)));
    const __m256i with = _mm256_cvtps_epi32(_mm256_add_ps(three, _mm256_set1_ps(d)));
    const __m256i words = _mm256_packs_epi32(without, with), bytes = _mm256_packs_epi16(words, words);
    // packing works on halves of a register: places 0-3, 8-11 | 4-7, 12-15
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)));
#else
    for (int i = 0; i < 8; ++i) {
        const float three = SIGN[0][i] * a + SIGN[1][i] * b + SIGN[2][i] * c;
        out[i] = static_cast<int8_t>(std::lrint(three - d)), out[i + 8] = static_cast<int8_t>(std::lrint(three + d));
    }
#endif
}

// Tables of one row of activations, their unit and the sum of the inputs for each step.
void make_tables(const float* x, int8_t* tables, float* units, float* sums, int64_t inputs, int64_t step) {
    for (int64_t g = 0; g < inputs / step; ++g, x += step) {
        float largest = 0, sum = 0;
        for (int64_t q = 0; q < step; q += 4) {
            const float size = std::fabs(x[q]) + std::fabs(x[q + 1]) + std::fabs(x[q + 2]) + std::fabs(x[q + 3]);
            largest = size > largest ? size : largest;
            sum += (x[q] + x[q + 1]) + (x[q + 2] + x[q + 3]);
        }
        units[g] = largest / 127.0f, sums[g] = sum;
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        for (int64_t q = 0; q < step; q += 4, tables += 16)
            sign_sums(x[q] * inverse, x[q + 1] * inverse, x[q + 2] * inverse, x[q + 3] * inverse, tables);
    }
}

// What does not change from tile to tile. A zero point beside every scale is kept in `shifts` as 2^B − 1 − 2 · zero; the
// grids without one have `shift`.
struct Product {
    int64_t rows, inputs, step, span;
    bool halves;
    float shift;
    std::vector<int8_t> tables;
    std::vector<float> units, sums;

    int64_t steps() const { return inputs / step; }
    int64_t spans() const { return steps() / span; }

    void tabulate(const float* x) {
        tables.resize(4 * rows * inputs), units.resize(rows * steps()), sums.resize(rows * steps());
        for (int64_t r = 0; r < rows; ++r)
            make_tables(x + r * inputs, &tables[4 * r * inputs], &units[r * steps()], &sums[r * steps()], inputs, step);
    }
};

// The scales of one tile as floats: in place, or from halves into `room`.
const float* tile_scales(const void* scales, bool halves, int64_t place, float* room) {
    if (!halves) return static_cast<const float*>(scales) + place;
    const uint16_t* half = static_cast<const uint16_t*>(scales) + place;
#if defined(__F16C__)
    for (int i = 0; i < TILE; i += 8)
        _mm256_storeu_ps(room + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
#else
    for (int i = 0; i < TILE; ++i) {
        // the biases of the exponents differ by 112, for subnormal numbers too
        const uint32_t magnitude = (half[i] & 0x7fffu) << 13;
        std::memcpy(room + i, &magnitude, 4);
        room[i] = std::copysign(room[i] * 0x1p112f, half[i] & 0x8000u ? -1.0f : 1.0f);
    }
#endif
    return room;
}

// Outputs of TILES tiles for every row of activations, into totals[row][64 · TILES].
template <int PLANES, int TILES, bool IN_WIDE>
void tiles_product(const Product& p, const uint8_t* weights, const void* scales, const int8_t* shifts, int64_t tile,
                   float* totals) {
    const int64_t size = PLANES * p.step / 8 * TILE, steps = p.steps();
    std::fill(totals, totals + p.rows * TILES * TILE, 0.0f);
    weights += tile * steps * size;
    for (int64_t g = 0; g < steps; ++g, weights += size)
        for (int64_t r = 0; r < p.rows; ++r) {
            const int8_t* tables = &p.tables[4 * (r * p.inputs + g * p.step)];
            alignas(64) int32_t values[TILES * TILE];
            if constexpr (IN_WIDE)
                for (int t = 0; t < TILES; ++t)
                    wide_sums<PLANES>(weights + t * steps * size, tables, p.step, values + t * TILE);
            else
                step_sums<PLANES, TILES>(weights, steps * size, tables, p.step, values);
            const float unit = 0.5f * p.units[r * steps + g], sum = 0.5f * p.sums[r * steps + g], fixed = sum * p.shift;
            for (int t = 0; t < TILES; ++t) {
                alignas(64) float room[TILE];
                const int64_t place = ((tile + t) * p.spans() + g / p.span) * TILE;
                const float* scale = tile_scales(scales, p.halves, place, room);
                const int32_t* value = values + t * TILE;
                float* total = totals + (r * TILES + t) * TILE;
                if (shifts)
                    for (int i = 0; i < TILE; ++i)
                        total[i] += scale[i] * (unit * static_cast<float>(value[i]) + sum * shifts[place + i]);
                else
                    for (int i = 0; i < TILE; ++i)
                        total[i] += scale[i] * (unit * static_cast<float>(value[i]) + fixed);
            }
        }
}

template <int TILES, bool IN_WIDE>
auto product_of(int64_t planes) {
    return planes == 1   ? tiles_product<1, TILES, IN_WIDE>
           : planes == 2 ? tiles_product<2, TILES, IN_WIDE>
           : planes == 3 ? tiles_product<3, TILES, IN_WIDE>
                         : tiles_product<4, TILES, IN_WIDE>;
}

}  // namespace

// Whether weights may lie in the wide form here.
extern "C" int graft_lut_wide() { return WIDE; }

// y (rows, outputs) = x (rows, inputs) · Wᵀ. weights, scales (fp16 where `halves`, else fp32) and shifts (or null) as
// above, outputs padded to whole tiles.
extern "C" void graft_lut(const uint8_t* weights, const void* scales, const int8_t* shifts, const float* x, float* y,
                          int64_t rows, int64_t outputs, int64_t inputs, int64_t step, int64_t span, int64_t planes,
                          int64_t halves, int64_t wide, int64_t threads, double shift) {
    Product product{rows, inputs, step, span, halves != 0, static_cast<float>(shift), {}, {}, {}};
    product.tabulate(x);
    const auto one = wide ? product_of<1, WIDE>(planes) : product_of<1, false>(planes);
    const auto several = product_of<STREAMS, false>(planes);
    const int64_t tiles = (outputs + TILE - 1) / TILE;
    const int64_t many = !wide && tiles >= STREAMS * threads ? STREAMS : 1, blocks = (tiles + many - 1) / many;
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1)
#endif
    for (int64_t block = 0; block < blocks; ++block) {
        std::vector<float> totals(rows * STREAMS * TILE);
        for (int64_t tile = block * many; tile < tiles && tile < (block + 1) * many;) {
            const int64_t here = tile + many <= tiles ? many : 1, width = here * TILE, first = tile * TILE;
            (here > 1 ? several : one)(product, weights, scales, shifts, tile, totals.data());
            for (int64_t r = 0; r < rows; ++r)
                std::copy_n(&totals[r * width], std::min(width, outputs - first), y + r * outputs + first);
            tile += here;
        }
    }
}

// ---- decoding ------------------------------------------------------------------------------------------------------

// out (rows, inputs) from planes (rows, bits, words). kind 0: scale · (code − zero), zero null where it is `fixed`;
// kind 1: scale · table[selector][code], selector null where there is one table; kind 2: table[row][code]. One row of
// scales or levels stands for all rows where `shared`.
extern "C" void graft_decode(const uint32_t* planes, const float* scale, const uint8_t* zero, const uint8_t* selector,
                             const float* table, float* out, int64_t rows, int64_t inputs, int64_t bits, int64_t groups,
                             int64_t kind, int64_t shared, int64_t threads, double fixed) {
    const int64_t words = (inputs + 31) / 32, width = (inputs + groups - 1) / groups, levels = int64_t(1) << bits;
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1)
#endif
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t owner = shared ? 0 : r;
        for (int64_t w = 0; w < words; ++w) {
            alignas(64) uint32_t codes[32] = {0};
            for (int64_t p = 0; p < bits; ++p) {
                const uint32_t word = planes[(r * bits + p) * words + w];
                for (int j = 0; j < 32; ++j) codes[j] |= ((word >> j) & 1u) << p;
            }
            const int64_t first = w * 32, count = inputs - first < 32 ? inputs - first : 32;
            float* y = out + r * inputs + first;
            if (kind == 2) {
                for (int64_t j = 0; j < count; ++j) y[j] = table[owner * levels + codes[j]];
                continue;
            }
            // a group may end inside a word
            for (int64_t j = 0; j < count;) {
                const int64_t group = (first + j) / width, place = owner * groups + group;
                const int64_t end = (group + 1) * width - first < count ? (group + 1) * width - first : count;
                const float s = scale[place];
                if (kind == 1) {
                    const float* book = table + (selector ? selector[place] * levels : 0);
                    for (; j < end; ++j) y[j] = book[codes[j]] * s;
                } else {
                    const float z = zero ? zero[place] : static_cast<float>(fixed);
                    for (; j < end; ++j) y[j] = (static_cast<float>(codes[j]) - z) * s;
                }
            }
        }
    }
}
