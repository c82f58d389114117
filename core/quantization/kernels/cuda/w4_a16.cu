// y (M, N) = x (M, K) · Wᵀ for few rows, W of 4 bits with one scale and zero point for 128 inputs.
//
// The weights are the matrix operand of the tensor core (m16n8k16), the activations its 8 columns. Each lane loads its
// fragments as whole words in the order of the instruction: weights are [N / 16][K / 128][2][32 lanes] × 16 bytes. A
// nibble q becomes a float by one bit operation, because BASE | q is the number BASE + q (128 in bf16, 1024 in fp16).
// What that adds is taken off once for a group, from the group's sum of activations, which a second product with ones
// gives in the very layout of the result: y += s · (d − (BASE + z) · Σx), in fp32.
// The order of inputs inside a group is free as long as both operands agree: fragment t holds inputs 32t … 32t + 31, so
// that activations are read 16 bytes at a time as they lie in memory.
//
// Compile with NT (tiles of 8 rows of x), WN (tiles of 16 outputs in a block), WK (parts of K in a block), HALF, DEPTH (groups in flight).

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

// Weights are read once: they pass by the first cache level.
__device__ __forceinline__ uint4 stream(const uint4* p) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

extern "C" __global__ void __launch_bounds__(32 * WN * WK)
w4_a16(const uint4* __restrict__ weights, const u32* __restrict__ scales, const uint4* __restrict__ x,
       u16* __restrict__ y, int rows, int outputs, int inputs) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int wn = warp % WN, wk = warp / WN, g = lane >> 2, t = lane & 3;
    const int tile = blockIdx.x * WN + wn, groups = inputs / 128;
    const int share = (groups + WK - 1) / WK, first = wk * share;
    const int last = first + share < groups ? first + share : groups;
    const bool inside = tile < outputs / 16;
    float sum[NT][4];
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[n][i] = 0.0f;

    if (inside) {
        const uint4* w = weights + (long long)tile * groups * 64 + lane;
        const u32* s = scales + (long long)tile * groups * 16;
        for (int base = first; base < last; base += DEPTH) {
            // loads of DEPTH groups are under way before the first is needed
            uint4 w0[DEPTH], w1[DEPTH], b[DEPTH][NT][4];
            u32 low[DEPTH], high[DEPTH];
#pragma unroll
            for (int j = 0; j < DEPTH; ++j) {
                const int group = base + j < last ? base + j : last - 1;
                w0[j] = stream(w + group * 64), w1[j] = stream(w + group * 64 + 32);
                low[j] = s[group * 16 + g], high[j] = s[group * 16 + g + 8];
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int row = n * 8 + g;
                        // a group of 128 halves is 16 vectors, and a lane's part 4 of them
                        b[j][n][i] = row < rows ? x[((long long)row * inputs >> 3) + group * 16 + t * 4 + i]
                                                : make_uint4(0, 0, 0, 0);
                    }
            }
#pragma unroll
            for (int j = 0; j < DEPTH; ++j) {
                if (base + j >= last) break;
                float d[NT][4], o[NT][4];
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) d[n][i] = 0.0f, o[n][i] = 0.0f;
                const u32 word[8] = {w0[j].x, w0[j].y, w0[j].z, w0[j].w, w1[j].x, w1[j].y, w1[j].z, w1[j].w};
#pragma unroll
                for (int k = 0; k < 8; ++k) {
                    const u32 a0 = (word[k] & 0x000F000Fu) | MAGIC, a1 = ((word[k] >> 4) & 0x000F000Fu) | MAGIC;
                    const u32 a2 = ((word[k] >> 8) & 0x000F000Fu) | MAGIC, a3 = ((word[k] >> 12) & 0x000F000Fu) | MAGIC;
#pragma unroll
                    for (int n = 0; n < NT; ++n) {
                        const uint4 v = b[j][n][k / 2];
                        const u32 b0 = k % 2 ? v.z : v.x, b1 = k % 2 ? v.w : v.y;
                        mma(d[n], a0, a1, a2, a3, b0, b1);
                        mma(o[n], ONES, ONES, ONES, ONES, b0, b1);
                    }
                }
                const float s0 = from_half(low[j]), s1 = from_half(high[j]);
                const float z0 = BASE + from_half(low[j] >> 16), z1 = BASE + from_half(high[j] >> 16);
#pragma unroll
                for (int n = 0; n < NT; ++n) {
                    sum[n][0] += s0 * (d[n][0] - z0 * o[n][0]);
                    sum[n][1] += s0 * (d[n][1] - z0 * o[n][1]);
                    sum[n][2] += s1 * (d[n][2] - z1 * o[n][2]);
                    sum[n][3] += s1 * (d[n][3] - z1 * o[n][3]);
                }
            }
        }
    }

    __shared__ float parts[WK][WN][NT * 4][32];
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) parts[wk][wn][n * 4 + i][lane] = sum[n][i];
    __syncthreads();
    // the parts of K are added in a fixed order: the result is the same in every run
    for (int index = threadIdx.x; index < WN * NT * 4 * 32; index += 32 * WN * WK) {
        const int l = index & 31, i = (index >> 5) % (NT * 4), n = index / (128 * NT);
        float total = 0.0f;
#pragma unroll
        for (int part = 0; part < WK; ++part) total += parts[part][n][i][l];
        const int row = (i / 4) * 8 + (l & 3) * 2 + (i & 1);
        const int output = (blockIdx.x * WN + n) * 16 + (l >> 2) + ((i & 2) ? 8 : 0);
        if (row < rows && output < outputs) y[(long long)row * outputs + output] = to_output(total);
    }
}
