// y (M, N) = x (M, K) · Wᵀ for few rows, W of 4 bits with scales for 128 or 64 inputs.
//
// The weights are the matrix operand of the tensor core (m16n8k16), the activations its 8 columns. A nibble of an affine
// grid becomes a float by one bit operation, because BASE | q is the number BASE + q (128 in bf16, 1024 in fp16); what
// that adds is taken off once for a group, from the group's sum of activations: y += s · (d − (BASE + z) · Σx), in fp32.
// A nibble of a codebook picks its two bytes out of a table of 16 values in registers, four nibbles at a time.
//
// One block stays on each multiprocessor and walks over tiles of 16·R outputs; its WK warps share out the groups of K.
// A warp copies its own weights asynchronously into a ring of STAGES units in shared memory, so that many bytes are under
// way whatever the registers hold, and the ring runs on across tiles. A lane mostly reads what it copied itself, in the
// order of the instruction's operands: weights are [N / 16][K / 128][2][32 lanes] × 16 bytes, scales
// [N / 16][K / 128][HALVES][16] words.
//
// Compile with NT (tiles of 8 rows of x), WK (warps), R (tiles of 16 outputs at once), STAGES, HALF (fp16), XS (x in
// shared memory), ALONG (sums of x are made on the way, for blocks that walk over one tile only; else once, before the
// first), HALVES (scales in 128 inputs), BOOK: 0 affine, scale and zero point in fp16; 1 one table; 2 four
// tables, the choice in the low bits of the scale; 3 a table for each output, and no scale.

typedef unsigned int u32;
typedef unsigned short u16;

#if HALF
#define ONES 0x3C003C00u
#define MAGIC 0x64006400u
#define BASE 1024.0f
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define ONES 0x3F803F80u
#define MAGIC 0x43004300u
#define BASE 128.0f
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif
#if BOOK == 3
#define SCALES 0
#else
#define SCALES (64 * HALVES)
#endif
#define UNIT (1024 + SCALES)  // bytes of 16 outputs and 128 inputs

__device__ __forceinline__ void mma(float* d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm(MMA " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float from_half(u32 bits) {
    float value;
    asm("{.reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h;}" : "=f"(value) : "r"(bits & 0xFFFFu));
    return value;
}

__device__ __forceinline__ u16 to_output(float value) {
    u16 bits;
#if HALF
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
    return bits;
}

__device__ __forceinline__ void copy16(u32 to, const char* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from));
}

__device__ __forceinline__ uint4 shared16(u32 from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from));
    return v;
}

__device__ __forceinline__ u32 shared4(u32 from) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(from));
    return v;
}

__device__ __forceinline__ float2 shared_pair(u32 from) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from));
    return v;
}

// The nibbles at bits 0 and 16 as two numbers; with both constants written out this would be two instructions.
__device__ __forceinline__ u32 numbers(u32 word, u32 magic) {
    u32 v;
    asm("lop3.b32 %0, %1, 0x000F000F, %2, 0xEA;" : "=r"(v) : "r"(word), "r"(magic));
    return v;
}

__device__ __forceinline__ u32 permute(u32 a, u32 b, u32 selector) {
    u32 v;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(selector));
    return v;
}

// The low four nibbles of `codes` as four numbers of a table: its 16 low bytes in words 0 … 3, its high ones in 4 … 7.
__device__ __forceinline__ void look_up(const u32* table, u32 codes, u32& first, u32& second) {
    const u32 eighth = codes & 0x7777u, upper = ((codes >> 1) & 0x4444u) | 0x3210u;
    const u32 low = permute(permute(table[0], table[1], eighth), permute(table[2], table[3], eighth), upper);
    const u32 high = permute(permute(table[4], table[5], eighth), permute(table[6], table[7], eighth), upper);
    first = permute(low, high, 0x5140u), second = permute(low, high, 0x7362u);
}

__device__ __forceinline__ void load_table(u32* table, const uint4* from) {
    const uint4 low = from[0], high = from[1];
    table[0] = low.x, table[1] = low.y, table[2] = low.z, table[3] = low.w;
    table[4] = high.x, table[5] = high.y, table[6] = high.z, table[7] = high.w;
}

extern "C" __global__ void __launch_bounds__(32 * WK, 1)
w4_a16(const char* __restrict__ weights, const char* __restrict__ scales, const uint4* __restrict__ tables,
       const char* __restrict__ x, u16* __restrict__ y, int rows, int outputs, int inputs) {
    extern __shared__ __align__(128) char memory[];
    const int lane = threadIdx.x & 31, wk = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int groups = inputs / 128, sixteens = outputs / 16, tiles = (sixteens + R - 1) / R;
    const int mine = groups > wk ? (groups - wk + WK - 1) / WK : 0;
    float* parts = (float*)(memory + WK * STAGES * R * UNIT);  // [2][WK][R * NT * 4][32]
    const u32 base = (u32)__cvta_generic_to_shared(memory);
    const u32 ring = base + wk * STAGES * R * UNIT, ring_end = ring + STAGES * R * UNIT;
    const u32 sums = base + WK * STAGES * R * UNIT + 2 * WK * R * NT * 512;  // [groups][HALVES][NT * 8]
    const u32 held = sums + (BOOK ? 0 : groups * HALVES * NT * 32);                                // rows of x, where they lie here

    // the unit to be copied next: its number, the groups of this warp that its tile has left, where it goes
    int next_tile = blockIdx.x, unit = next_tile * R * groups + wk, left = next_tile < tiles ? mine : 0;
    u32 to = ring + lane * 16;
    auto issue = [&]() {
        if (left) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                // behind the last tile stands the first again: what comes of it is not written
                const int at = R == 1 || next_tile * R + r < sixteens ? unit + r * groups : unit;
                const char* from = weights + (long long)at * 1024 + lane * 16;
                copy16(to + r * UNIT, from);
                copy16(to + r * UNIT + 512, from + 512);
                if (lane < SCALES / 16) copy16(to + r * UNIT + 1024, scales + (long long)at * SCALES + lane * 16);
            }
            unit += WK;
            if (--left == 0) {
                next_tile += gridDim.x;
                unit = next_tile * R * groups + wk;
                left = next_tile < tiles ? mine : 0;
            }
        }
        to += R * UNIT;
        if (to >= ring_end) to = ring + lane * 16;
        asm volatile("cp.async.commit_group;");
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) issue();

    // Vector i of a lane holds inputs 32i + 8t … + 7 of a group, for the row that its column stands for. A column
    // without a row repeats the last one: columns do not mix, and it is not written.
    const int stride = inputs * 2 + (XS ? 64 : 0);  // in shared memory rows start in alternating halves of the banks
    u32 offset[NT];
#pragma unroll
    for (int n = 0; n < NT; ++n) offset[n] = min(n * 8 + g, rows - 1) * stride + t * 16;
#if XS
    for (int index = threadIdx.x; index < rows * (inputs / 8); index += 32 * WK) {
        const int row = index / (inputs / 8), at = index % (inputs / 8);
        *(uint4*)(memory + (held - base) + row * stride + at * 16) = *(const uint4*)(x + (long long)index * 16);
    }
    __syncthreads();
#endif
    uint4 b[NT][4];
    auto load_x = [&](int group) {
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
#if XS
                b[n][i] = shared16(held + offset[n] + group * 256 + i * 64);
#else
                b[n][i] = *(const uint4*)(x + offset[n] + group * 256 + i * 64);
#endif
    };
#if BOOK == 0
    // Σx of a group or half of one, in each row of what the tensor core returns
    auto sum_x = [&](float* o, int n, int half) {
        o[0] = o[1] = o[2] = o[3] = 0.0f;
#pragma unroll
        for (int i = half * (4 / HALVES); i < (half + 1) * (4 / HALVES); ++i) {
            mma(o, ONES, ONES, ONES, ONES, b[n][i].x, b[n][i].y);
            mma(o, ONES, ONES, ONES, ONES, b[n][i].z, b[n][i].w);
        }
    };
#endif
#if BOOK == 0 && !ALONG
    for (int group = wk; group < groups; group += WK) {
        load_x(group);
#pragma unroll
        for (int half = 0; half < HALVES; ++half)
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                float o[4];
                sum_x(o, n, half);
                if (g == 0)
                    asm volatile("st.shared.v2.f32 [%0], {%1,%2};"
                                 ::"r"(sums + ((group * HALVES + half) * NT + n) * 32 + t * 8), "f"(o[0]), "f"(o[1])
                                 : "memory");
            }
    }
    __syncwarp();
#endif

#if BOOK == 0
    u32 magic;
    asm volatile("mov.u32 %0, %1;" : "=r"(magic) : "n"(MAGIC));
#elif BOOK == 1
    u32 only_book[8];
    load_table(only_book, tables);
#endif
    u32 at = ring;
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, ++turn) {
        float sum[R][NT][4];
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[r][n][i] = 0.0f;

#if BOOK == 3
        u32 book[R][2][8];
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int first = min(tile * R + r, sixteens - 1) * 16 + g;
            load_table(book[r][0], tables + first * 2), load_table(book[r][1], tables + (first + 8) * 2);
        }
#endif
        for (int group = wk; group < groups; group += WK) {
            load_x(group);
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
            // every lane has read the last unit, and sees the scales that others copied
            __syncwarp();
            issue();
#if BOOK == 0 && ALONG
            float along[HALVES][NT][4];
#pragma unroll
            for (int half = 0; half < HALVES; ++half)
#pragma unroll
                for (int n = 0; n < NT; ++n) sum_x(along[half][n], n, half);
#endif
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const uint4 w0 = shared16(at + r * UNIT + lane * 16), w1 = shared16(at + r * UNIT + 512 + lane * 16);
                const u32 word[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
                u32 low[HALVES], high[HALVES];
#pragma unroll
                for (int half = 0; half < HALVES && SCALES; ++half) {
                    low[half] = shared4(at + r * UNIT + 1024 + half * 64 + g * 4);
                    high[half] = shared4(at + r * UNIT + 1056 + half * 64 + g * 4);
                }
                // the two chains of products are the two halves of 64 inputs
                float d[2][NT][4];
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) d[0][n][i] = 0.0f, d[1][n][i] = 0.0f;
#pragma unroll
                for (int k = 0; k < 8; ++k) {
                    u32 a0, a1, a2, a3;
#if BOOK == 0
                    a0 = numbers(word[k], magic), a1 = numbers(word[k] >> 4, magic);
                    a2 = numbers(word[k] >> 8, magic), a3 = numbers(word[k] >> 12, magic);
#else
                    const int i = k / 2, upper = k % 2 * 16;
#if BOOK == 1
                    look_up(only_book, word[2 * i] >> upper, a0, a2), look_up(only_book, word[2 * i + 1] >> upper, a1, a3);
#elif BOOK == 2
                    u32 book_low[8], book_high[8];
                    load_table(book_low, tables + (low[i * HALVES / 4] & 3) * 2);
                    load_table(book_high, tables + (high[i * HALVES / 4] & 3) * 2);
                    look_up(book_low, word[2 * i] >> upper, a0, a2), look_up(book_high, word[2 * i + 1] >> upper, a1, a3);
#else
                    look_up(book[r][0], word[2 * i] >> upper, a0, a2), look_up(book[r][1], word[2 * i + 1] >> upper, a1, a3);
#endif
#endif
#pragma unroll
                    for (int n = 0; n < NT; ++n) {
                        const uint4 v = b[n][k / 2];
                        mma(d[k / 4][n], a0, a1, a2, a3, k % 2 ? v.z : v.x, k % 2 ? v.w : v.y);
                    }
                }
#pragma unroll
                for (int half = 0; half < HALVES; ++half) {
#if BOOK == 0
                    const float s0 = from_half(low[half]), s1 = from_half(high[half]);
                    const float z0 = BASE + from_half(low[half] >> 16), z1 = BASE + from_half(high[half] >> 16);
#elif BOOK == 3
                    const float s0 = 1.0f, s1 = 1.0f;
#else
                    const float s0 = __uint_as_float(low[half]), s1 = __uint_as_float(high[half]);
#endif
#pragma unroll
                    for (int n = 0; n < NT; ++n) {
                        float v[4];
#pragma unroll
                        for (int i = 0; i < 4; ++i) v[i] = HALVES == 1 ? d[0][n][i] + d[1][n][i] : d[half][n][i];
#if BOOK == 0
#if ALONG
                        const float2 o = make_float2(along[half][n][0], along[half][n][1]);
#else
                        const float2 o = shared_pair(sums + ((group * HALVES + half) * NT + n) * 32 + t * 8);
#endif
                        v[0] -= z0 * o.x, v[1] -= z0 * o.y, v[2] -= z1 * o.x, v[3] -= z1 * o.y;
#endif
                        sum[r][n][0] += s0 * v[0], sum[r][n][1] += s0 * v[1];
                        sum[r][n][2] += s1 * v[2], sum[r][n][3] += s1 * v[3];
                    }
                }
            }
            at += R * UNIT;
            if (at == ring_end) at = ring;
        }

        float* here = parts + (turn & 1) * WK * R * NT * 128;
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) here[(wk * R * NT * 4 + (r * NT + n) * 4 + i) * 32 + lane] = sum[r][n][i];
        __syncthreads();
        // parts of K are added in a fixed order, so the result is the same in every run; warps take turns to add
        const int warp = (wk + turn * R * NT * 4) % WK;
        for (int index = warp * 32 + lane; index < R * NT * 128; index += 32 * WK) {
            const int l = index & 31, i = (index >> 5) & 3, n = (index >> 7) % NT, r = index / (NT * 128);
            const int row = n * 8 + (l & 3) * 2 + (i & 1);
            const int output = (tile * R + r) * 16 + (l >> 2) + ((i & 2) ? 8 : 0);
            if (row < rows && output < outputs) {
                float total = 0.0f;
#pragma unroll
                for (int part = 0; part < WK; ++part) total += here[part * R * NT * 128 + index];
                y[(long long)row * outputs + output] = to_output(total);
            }
        }
    }
}
