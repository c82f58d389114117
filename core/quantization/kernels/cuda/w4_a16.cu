// y (M, N) = x (M, K) · Wᵀ for few rows, W of 4 bits with one scale and zero point for 128 inputs.
//
// The weights are the matrix operand of the tensor core (m16n8k16), the activations its 8 columns. A nibble q becomes a
// float by one bit operation, because BASE | q is the number BASE + q (128 in bf16, 1024 in fp16); what that adds is
// taken off once for a group, from the group's sum of activations: y += s · (d − (BASE + z) · Σx), in fp32.
//
// One block stays on each multiprocessor and walks over tiles of 16·R outputs; its WK warps share out the groups of K.
// A warp copies its own weights asynchronously into a ring of STAGES units in shared memory, so that many bytes are under
// way whatever the registers hold, and the ring runs on across tiles. A lane mostly reads what it copied itself, in the
// order of the instruction's operands: weights are [N / 16][K / 128][2][32 lanes] × 16 bytes, scales [N / 16][K / 128][16].
//
// Compile with NT (tiles of 8 rows of x), WK (warps), R (tiles of 16 outputs at once), STAGES, HALF, XS (x in shared memory).

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
#define UNIT 1088  // bytes of 16 rows of a group: 1024 of codes, 64 of scales and zero points

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

__device__ __forceinline__ void copy16(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from));
}

__device__ __forceinline__ uint4 shared16(u32 from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from));
    return v;
}

// A vector of activations, where this lane's column has a row; the registers of other lanes keep their zeros.
__device__ __forceinline__ void activations(uint4& v, bool has, u32 in_shared, const uint4* in_global) {
#if XS
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "r"(in_shared), "r"((u32)has));
#else
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "l"(in_global), "r"((u32)has));
#endif
}

extern "C" __global__ void __launch_bounds__(32 * WK, 1)
w4_a16(const uint4* __restrict__ weights, const u32* __restrict__ scales, const uint4* __restrict__ x,
       u16* __restrict__ y, int rows, int outputs, int inputs) {
    extern __shared__ __align__(128) char memory[];
    const int lane = threadIdx.x & 31, wk = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int groups = inputs / 128, sixteens = outputs / 16, tiles = (sixteens + R - 1) / R;
    const int mine = groups > wk ? (groups - wk + WK - 1) / WK : 0;
    char* ring = memory + wk * STAGES * R * UNIT;
    float* parts = (float*)(memory + WK * STAGES * R * UNIT);  // [2][WK][R * NT * 4][32]
    float* sums = parts + 2 * WK * R * NT * 128;                // [groups][NT * 8]
    char* rows_of_x = (char*)(sums + groups * NT * 8);
    const int stride = inputs * 2 + 64;  // rows of x start in alternating halves of the banks
    const u32 ring_at = (u32)__cvta_generic_to_shared(ring), x_at = (u32)__cvta_generic_to_shared(rows_of_x);

    int next_tile = blockIdx.x, next_group = wk, next_stage = 0;
    auto issue = [&]() {
        if (mine && next_tile < tiles) {
            const u32 to = ring_at + next_stage * (R * UNIT);
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const int sixteen = R == 1 || next_tile * R + r < sixteens ? next_tile * R + r : sixteens - 1;
                const long long unit = (long long)sixteen * groups + next_group;
                const uint4* from = weights + unit * 64 + lane;
                copy16(to + r * UNIT + lane * 16, from);
                copy16(to + r * UNIT + 512 + lane * 16, from + 32);
                if (lane < 4) copy16(to + r * UNIT + 1024 + lane * 16, scales + unit * 16 + lane * 4);
            }
            next_group += WK;
            if (next_group >= groups) next_group = wk, next_tile += gridDim.x;
        }
        if (++next_stage == STAGES) next_stage = 0;
        asm volatile("cp.async.commit_group;");
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) issue();

#if XS
    for (int index = threadIdx.x; index < rows * (inputs / 8); index += 32 * WK) {
        const int row = index / (inputs / 8), at = index % (inputs / 8);
        *(uint4*)(rows_of_x + row * stride + at * 16) = x[index];
    }
    __syncthreads();
#endif
    uint4 b[NT][4];
    bool has[NT];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        has[n] = n * 8 + g < rows;
#pragma unroll
        for (int i = 0; i < 4; ++i) b[n][i] = make_uint4(0, 0, 0, 0);
    }
    // vector i of a lane holds inputs 32i + 8t … + 7 of the group
    auto load_x = [&](int group) {
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                activations(b[n][i], has[n], x_at + (n * 8 + g) * stride + group * 256 + i * 64 + t * 16,
                            x + ((long long)(n * 8 + g) * inputs >> 3) + group * 16 + i * 4 + t);
    };
    for (int group = wk; group < groups; group += WK) {
        load_x(group);
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            float o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                mma(o, ONES, ONES, ONES, ONES, b[n][i].x, b[n][i].y);
                mma(o, ONES, ONES, ONES, ONES, b[n][i].z, b[n][i].w);
            }
            if (g == 0) *(float2*)(sums + (group * NT + n) * 8 + t * 2) = make_float2(o[0], o[1]);
        }
    }
    __syncwarp();

    int stage = 0, turn = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, ++turn) {
        float sum[R][NT][4];
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int n = 0; n < NT; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[r][n][i] = 0.0f;

        for (int group = wk; group < groups; group += WK) {
            load_x(group);
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
            // every lane has read the last unit, and sees the scales that others copied
            __syncwarp();
            issue();
            float2 o[NT];
#pragma unroll
            for (int n = 0; n < NT; ++n) o[n] = *(const float2*)(sums + (group * NT + n) * 8 + t * 2);
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const u32 at = ring_at + (stage * R + r) * UNIT;
                const uint4 w0 = shared16(at + lane * 16), w1 = shared16(at + 512 + lane * 16);
                const u32* s = (const u32*)(ring + (stage * R + r) * UNIT + 1024);
                const u32 low = s[g], high = s[g + 8];
                const u32 word[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
                float d[2][NT][4];  // two chains of products, half as long
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) d[0][n][i] = 0.0f, d[1][n][i] = 0.0f;
#pragma unroll
                for (int k = 0; k < 8; ++k) {
                    const u32 a0 = (word[k] & 0x000F000Fu) | MAGIC, a1 = ((word[k] >> 4) & 0x000F000Fu) | MAGIC;
                    const u32 a2 = ((word[k] >> 8) & 0x000F000Fu) | MAGIC, a3 = ((word[k] >> 12) & 0x000F000Fu) | MAGIC;
#pragma unroll
                    for (int n = 0; n < NT; ++n) {
                        const uint4 v = b[n][k / 2];
                        mma(d[k % 2][n], a0, a1, a2, a3, k % 2 ? v.z : v.x, k % 2 ? v.w : v.y);
                    }
                }
                const float s0 = from_half(low), s1 = from_half(high);
                const float z0 = BASE + from_half(low >> 16), z1 = BASE + from_half(high >> 16);
#pragma unroll
                for (int n = 0; n < NT; ++n) {
                    sum[r][n][0] += s0 * (d[0][n][0] + d[1][n][0] - z0 * o[n].x);
                    sum[r][n][1] += s0 * (d[0][n][1] + d[1][n][1] - z0 * o[n].y);
                    sum[r][n][2] += s1 * (d[0][n][2] + d[1][n][2] - z1 * o[n].x);
                    sum[r][n][3] += s1 * (d[0][n][3] + d[1][n][3] - z1 * o[n].y);
                }
            }
            if (++stage == STAGES) stage = 0;
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
