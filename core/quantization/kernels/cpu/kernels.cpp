// Kernels for CPUs with a plain C interface: exact one-dimensional k-means, and products by table lookup.

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
// With t = 2·bit − 1 a code is q = ½ Σ 2^b t_b + (2^B − 1)/2. Four activations have 16 signed sums, so four bits of one
// plane are an index into a table of 16 bytes, which is one register, and one shuffle looks up a whole vector of rows.
// Weights lie as [rows / 64][groups][planes][group / 8][64]: byte r holds for row r the indices of two quads. Scales
// and offsets lie as [rows / 64][groups][64], even rows and then odd ones, because sums of bytes are taken as 16-bit
// words: the word sum less 256 times the sum of the high bytes is the sum of the low ones, exactly.

namespace {

constexpr int TILE = 64;

#if defined(__AVX512BW__)
struct Vec {
    static constexpr int bytes = 64;
    using T = __m512i;
    static T zero() { return _mm512_setzero_si512(); }
    static T load(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static void store(int16_t* p, T v) { _mm512_storeu_si512(p, v); }
    static T table(const uint8_t* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static T low(T v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
    static T high(T v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
    static T look(T table, T index) { return _mm512_shuffle_epi8(table, index); }
    static T add(T a, T b) { return _mm512_add_epi16(a, b); }
    static T sub(T a, T b) { return _mm512_sub_epi16(a, b); }
    static T up8(T v) { return _mm512_slli_epi16(v, 8); }
    static T down8(T v) { return _mm512_srli_epi16(v, 8); }
    static T all(int16_t v) { return _mm512_set1_epi16(v); }
};
#elif defined(__AVX2__)
struct Vec {
    static constexpr int bytes = 32;
    using T = __m256i;
    static T zero() { return _mm256_setzero_si256(); }
    static T load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const T*>(p)); }
    static void store(int16_t* p, T v) { _mm256_storeu_si256(reinterpret_cast<T*>(p), v); }
    static T table(const uint8_t* p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static T low(T v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
    static T high(T v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
    static T look(T table, T index) { return _mm256_shuffle_epi8(table, index); }
    static T add(T a, T b) { return _mm256_add_epi16(a, b); }
    static T sub(T a, T b) { return _mm256_sub_epi16(a, b); }
    static T up8(T v) { return _mm256_slli_epi16(v, 8); }
    static T down8(T v) { return _mm256_srli_epi16(v, 8); }
    static T all(int16_t v) { return _mm256_set1_epi16(v); }
};
#endif

// Sums of one plane over a group: even rows into `even`, odd rows into `odd`, each of 32 words less the tables' bias.
#if defined(__AVX512BW__) || defined(__AVX2__)
inline void plane_sums(const uint8_t* weights, const uint8_t* tables, int64_t pairs, int16_t* even, int16_t* odd) {
    for (int part = 0; part < TILE / Vec::bytes; ++part) {
        Vec::T words = Vec::zero(), highs = Vec::zero();
        const uint8_t* w = weights + part * Vec::bytes;
        for (int64_t m = 0; m < pairs; ++m, w += TILE) {
            const Vec::T indices = Vec::load(w);
            const Vec::T a = Vec::look(Vec::table(tables + 32 * m), Vec::low(indices));
            const Vec::T b = Vec::look(Vec::table(tables + 32 * m + 16), Vec::high(indices));
            words = Vec::add(Vec::add(words, a), b);
            highs = Vec::add(Vec::add(highs, Vec::down8(a)), Vec::down8(b));
        }
        const Vec::T bias = Vec::all(static_cast<int16_t>(256 * pairs));
        Vec::store(even + part * Vec::bytes / 2, Vec::sub(Vec::sub(words, Vec::up8(highs)), bias));
        Vec::store(odd + part * Vec::bytes / 2, Vec::sub(highs, bias));
    }
}
#else
inline void plane_sums(const uint8_t* weights, const uint8_t* tables, int64_t pairs, int16_t* even, int16_t* odd) {
    int16_t sums[TILE] = {0};
    for (int64_t m = 0; m < pairs; ++m)
        for (int r = 0; r < TILE; ++r) {
            const uint8_t index = weights[m * TILE + r];
            sums[r] += tables[32 * m + (index & 15)] + tables[32 * m + 16 + (index >> 4)] - 256;
        }
    for (int r = 0; r < TILE; ++r) (r % 2 ? odd : even)[r / 2] = sums[r];
}
#endif

constexpr float SIGN[4][16] = {{-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
                               {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
                               {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1},
                               {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1}};

// Tables of one row of activations: bytes biased by 128, one step and one sum for each group.
void make_tables(const float* x, uint8_t* tables, float* steps, float* sums, int64_t inputs, int64_t group) {
    for (int64_t g = 0; g < inputs / group; ++g) {
        const float* part = x + g * group;
        float largest = 0, sum = 0;
        for (int64_t q = 0; q < group; q += 4) {
            const float size = std::fabs(part[q]) + std::fabs(part[q + 1]) + std::fabs(part[q + 2]) + std::fabs(part[q + 3]);
            largest = size > largest ? size : largest;
            sum += (part[q] + part[q + 1]) + (part[q + 2] + part[q + 3]);
        }
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        steps[g] = largest / 127.0f, sums[g] = sum;
        uint8_t* out = tables + g * group * 4;
        for (int64_t q = 0; q < group; q += 4) {
            const float a = part[q] * inverse, b = part[q + 1] * inverse;
            const float c = part[q + 2] * inverse, d = part[q + 3] * inverse;
            // at least 1.5 before truncation, so this rounds to the nearest
            for (int i = 0; i < 16; ++i)
                out[q * 4 + i] =
                    static_cast<uint8_t>(static_cast<int>(SIGN[0][i] * a + SIGN[1][i] * b + SIGN[2][i] * c +
                                                          SIGN[3][i] * d + 128.5f));
        }
    }
}

// One tile of 64 outputs for one row of activations; the number of planes is fixed, so that the loops unroll.
template <int PLANES>
void tile_row(const uint8_t* w, const float* s, const float* o, const uint8_t* table, const float* steps,
              const float* sums, int64_t groups, int64_t group, float* total) {
    const int64_t pairs = group / 8;
    for (int64_t g = 0; g < groups; ++g, table += group * 4, s += TILE, o += TILE, w += PLANES * pairs * TILE) {
        alignas(64) int16_t part[PLANES][TILE];
        for (int p = 0; p < PLANES; ++p)
            plane_sums(w + p * pairs * TILE, table, pairs, part[p], part[p] + TILE / 2);
        const float half = 0.5f * steps[g], sum = sums[g];
        for (int i = 0; i < TILE; ++i) {
            int value = 0;
            for (int p = 0; p < PLANES; ++p) value += part[p][i] * (1 << p);
            total[i] += s[i] * (half * static_cast<float>(value)) + o[i] * sum;
        }
    }
}

// The wide form, for processors that look up 64 bytes at once (VBMI) and add four products of bytes (VNNI): weights lie as
// [rows / 64][groups][planes][group / 32][64][4], so that the four bytes of a row hold quads 0 … 3 in their low nibbles
// and 4 … 7 in their high ones. The place of a byte is part of its index, four tables are one register, and a plane's
// weight is the factor of the sum; scales and offsets keep the order of rows.
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
constexpr bool WIDE = true;

template <int PLANES>
void wide_tile_row(const uint8_t* w, const float* s, const float* o, const uint8_t* table, const float* steps,
                   const float* sums, int64_t groups, int64_t group, float* total) {
    const __m512i nibble = _mm512_set1_epi8(15), place = _mm512_set1_epi32(0x30201000);
    const __m512i bias = _mm512_set1_epi32(static_cast<int>(-128 * (group / 4) * ((1 << PLANES) - 1)));
    const auto index = [&](__m512i v) { return _mm512_ternarylogic_epi32(v, nibble, place, 0xEA); };
    __m512 y[4];
    for (int r = 0; r < 4; ++r) y[r] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; ++g, table += group * 4, s += TILE, o += TILE) {
        __m512i low[4], high[4];
        for (int r = 0; r < 4; ++r) low[r] = bias, high[r] = _mm512_setzero_si512();
        for (int p = 0; p < PLANES; ++p) {
            const __m512i factor = _mm512_set1_epi8(static_cast<char>(1 << p));
            const uint8_t* tables = table;
            for (int64_t m = 0; m < group; m += 32, tables += 128, w += 4 * TILE) {
                const __m512i first = _mm512_loadu_si512(tables), second = _mm512_loadu_si512(tables + 64);
                for (int r = 0; r < 4; ++r) {
                    const __m512i indices = _mm512_loadu_si512(w + 64 * r);
                    low[r] = _mm512_dpbusd_epi32(low[r], _mm512_permutexvar_epi8(index(indices), first), factor);
                    const __m512i upper = index(_mm512_srli_epi16(indices, 4));
                    high[r] = _mm512_dpbusd_epi32(high[r], _mm512_permutexvar_epi8(upper, second), factor);
                }
            }
        }
        const __m512 half = _mm512_set1_ps(0.5f * steps[g]), sum = _mm512_set1_ps(sums[g]);
        for (int r = 0; r < 4; ++r) {
            const __m512 value = _mm512_cvtepi32_ps(_mm512_add_epi32(low[r], high[r]));
            y[r] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_loadu_ps(s + 16 * r), half), value, y[r]);
            y[r] = _mm512_fmadd_ps(_mm512_loadu_ps(o + 16 * r), sum, y[r]);
        }
    }
    for (int r = 0; r < 4; ++r) _mm512_storeu_ps(total + 16 * r, y[r]);
}
#else
constexpr bool WIDE = false;

template <int PLANES>
void wide_tile_row(const uint8_t*, const float*, const float*, const uint8_t*, const float*, const float*, int64_t,
                   int64_t, float*) {}
#endif

}  // namespace

// Whether weights may lie in the wide form here.
extern "C" int graft_lut_wide() { return WIDE; }

// y (rows, outputs) = x (rows, inputs) · Wᵀ. weights, scale, offset as above, outputs padded to whole tiles.
extern "C" void graft_lut(const uint8_t* weights, const float* scale, const float* offset, const float* x, float* y,
                          int64_t rows, int64_t outputs, int64_t inputs, int64_t group, int64_t planes, int64_t wide,
                          int64_t threads) {
    const int64_t groups = inputs / group, tiles = (outputs + TILE - 1) / TILE, pairs = group / 8;
    std::vector<uint8_t> tables(rows * inputs * 4);
    std::vector<float> steps(rows * groups), sums(rows * groups);
    for (int64_t r = 0; r < rows; ++r)
        make_tables(x + r * inputs, &tables[r * inputs * 4], &steps[r * groups], &sums[r * groups], inputs, group);
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(threads)) if (threads > 1)
#endif
    for (int64_t tile = 0; tile < tiles; ++tile) {
        for (int64_t r = 0; r < rows; ++r) {
            alignas(64) float total[TILE] = {0};
            const int64_t first = tile * groups;
            const auto run = [&](auto kernel) {
                kernel(weights + first * planes * pairs * TILE, scale + first * TILE, offset + first * TILE,
                       &tables[r * inputs * 4], &steps[r * groups], &sums[r * groups], groups, group, total);
            };
            if (planes == 1) run(wide ? wide_tile_row<1> : tile_row<1>);
            if (planes == 2) run(wide ? wide_tile_row<2> : tile_row<2>);
            if (planes == 3) run(wide ? wide_tile_row<3> : tile_row<3>);
            if (planes == 4) run(wide ? wide_tile_row<4> : tile_row<4>);
            float* out = y + r * outputs + tile * TILE;
            const int64_t here = outputs - tile * TILE < TILE ? outputs - tile * TILE : TILE;
            for (int64_t i = 0; i < here; ++i) out[i] = wide ? total[i] : total[(i % 2) * (TILE / 2) + i / 2];
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
