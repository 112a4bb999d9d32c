// SPDX-License-Identifier: Apache-2.0
//
// A whole step of few rows as one kernel, on GPUs of compute capability 9.0.
//
// One CTA per multiprocessor. Two of its warps stream weights and cached keys and values into
// shared memory ahead of the warps that use them: what they fetch does not depend on any
// result. CTAs publish q, k and v, the attention output, x and the gated values to all others
// as packets (decode.h); there is no other synchronization between them.
//
// Results equal those of the separate kernels bit for bit: slices and splits are the same and
// are added in the same order.
#include "decode_attend.cuh"
#include "decode_multiply.cuh"
#include "decode_stream.cuh"

#if PL_HOPPER

// ---- a layer -------------------------------------------------------------------------------

// What a row of q, k and v or of o has added.
template <int W>
__device__ __noinline__ float bias_of(const cta<W> &c, const pl_cu_decode_layer &l, int op, int n)
{
    int q = c.head_rows(), kv = c.kv_rows(), part = op != QKV || n < q ? 0 : n < q + kv ? q : q + kv;
    const float *bias = op == QKV ? !part ? l.q_bias : part == q ? l.k_bias : l.v_bias : op == O ? l.o_bias : NULL;
    return bias ? bias[n - part] : -0.0f; // changes nothing
}

// Publishes q, k and v, or adds the output of o or down to the CTA's part of x and publishes that.
template <int W>
__device__ __forceinline__ void publish_sums(const cta<W> &c, const pl_cu_decode_layer &l, int op, const product &p,
                                          uint32_t epoch)
{
    float *x = c.floats(c.at.residual);
    for_outputs(c, p.units.to - p.units.from, [&](const output &o) {
        int n = (p.units.from + o.unit) * 8 + o.n;
        float v = o.real ? sum_of(c, o, o.unit, p) : 0;
        if (c.d.biased && o.real) v = __fadd_rn(v, bias_of(c, l, op, n));
        if (o.real && op != QKV) {
            float *own = x + (o.unit * c.d.a.n_rows + o.row) * 8 + o.n;
            *own = v = __fadd_rn(*own, v);
        }
        publish_floats(p.published + o.row * p.stride + n, o, v, epoch);
    });
}

template <bool F16, int W>
__device__ __forceinline__ void publish_gated(const cta<W> &c, const product &p, uint32_t epoch)
{
    for_outputs(c, p.units.to - p.units.from, [&](const output &o) {
        float v = 0;
        if (o.real)
            v = silu_of(sum_of(c, o, 2 * o.unit, p), sum_of(c, o, 2 * o.unit + 1, p));
        publish_halves<F16>(p.published + o.row * p.stride + ((p.units.from + o.unit) * 8 + o.n) / 2, o, v, epoch);
    });
}

// One loop for all four products keeps a layer's code small enough for the instruction cache.
template <bool F16, int W>
__device__ __forceinline__ void compute_layer(cta<W> &c, int layer)
{
    const pl_cu_decode &d = c.d;
    const pl_cu_decode_layer &l = c.layer(layer);
    uint32_t epoch = d.epoch + layer;
#pragma unroll 1
    for (int op = QKV; op < PRODUCTS; op++) {
        asm volatile("" : "+r"(c.tid)); // recompute what depends on it: it is not worth registers
        product p = c.s.products[op];
        int n_units = (p.units.to - p.units.from) * (op == GATE_UP ? 2 : 1);
        multiply_units<F16>(c, p, n_units, [&] {
            if (op == O || op == DOWN) {
                await_halves(c, op == O ? d.attended : d.gated, p, epoch);
            } else {
                if (op == GATE_UP || layer) await_x(c, op == QKV ? d.x : d.middle, op == QKV ? epoch - 1 : epoch);
                norm_x<F16>(c, 2 * layer + (op == GATE_UP), d.a.n_rows, [](int row) { return row; });
            }
        });
        if (op == GATE_UP) publish_gated<F16>(c, p, epoch);
        else publish_sums(c, l, op, p, epoch);
    }
}

// ---- the step ------------------------------------------------------------------------------

// Every CTA reads the whole rows of the table.
template <int W>
__device__ __forceinline__ void embed(const cta<W> &c)
{
    const pl_cu_decode &d = c.d;
    range r = c.s.products[O].units;
    float *x = c.floats(c.at.x), *own = c.floats(c.at.residual), *norms = c.floats(c.at.norms);
    int pitch = x_pitch(d.hidden);
#pragma unroll 1
    for (int row = 0; row < d.a.n_rows; row++) {
        int token = c.s.rows[row].token;
        if (token < 0) token = PL_CU_TOKEN(d.before[-1 - token]);
        for (int i = c.tid; i < pitch; i += CONSUMERS) {
            if (i >= d.hidden) {
                x[row * pitch + i] = norms[i] = norms[pitch + i] = 0;
                continue;
            }
            float v = from_16(((const uint16_t *)d.embed)[packed_at(token, i, pl_cu_pitch(d.hidden))], d.embed_f16);
            x[row * pitch + i] = v;
            if (i / 8 >= r.from && i / 8 < r.to) own[((i / 8 - r.from) * d.a.n_rows + row) * 8 + i % 8] = v;
        }
    }
    fetch_norm(c, 0);
    wait_copies<0>();
    all_meet();
}

// Logits of a warp's units, and the best token of each row.
template <bool F16, int W>
__device__ __forceinline__ void multiply_head(cta<W> &c)
{
    const pl_cu_decode &d = c.d;
    int warp = c.tid / 32, lane = c.tid % 32, per = pieces_of(d.hidden);
    int mine = warp - c.piece & CONSUMER_WARPS - 1;
    const uint16_t *input = input_row(c, d.n_picks, d.hidden);
    range r = c.s.products[HEAD].units;
    uint64_t best[2] = {};
#pragma unroll 1
    for (int unit = r.from + mine; unit < r.to + mine; unit += CONSUMER_WARPS) {
        float sum[2] = {};
        lane_sums l;
#pragma unroll 1
        for (int i = 0; i < per; i++, c.piece += CONSUMER_WARPS) {
            uint4 w[16];
            float some[4] = {};
            int columns = min(d.hidden - i * PIECE, (int)PIECE);
            load_piece(c, c.piece + mine, w);
            multiply<F16>(w, input + i * PIECE, columns, NULL, some);
            l = sums_in(lane, some);
#pragma unroll
            for (int e = 0; e < 2; e++) { // the lanes of the first slice add both
                float second = __shfl_xor_sync(~0u, l.v[e], 2);
                sum[e] = i ? __fadd_rn(sum[e], l.v[e]) : l.v[e];
                if (columns > PL_CU_SLICE) sum[e] = __fadd_rn(sum[e], second);
            }
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int id = unit * 8 + lane / 4, row = l.row + e;
            if (l.slice || unit >= r.to || id >= d.vocab || row >= d.n_picks) continue;
            if (d.logits) d.logits[(size_t)row * d.vocab + id] = sum[e];
            best[e] = max(best[e], key_of(sum[e], id));
        }
    }
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int row = lane % 2 * 2 + e;
        if (lane % 4 < 2 && row < d.n_picks)
            atomicMax((unsigned long long *)&c.s.best[row], (unsigned long long)best[e]);
    }
}

template <bool F16, int W>
__device__ __forceinline__ void draw(cta<W> &c)
{
    const pl_cu_decode &d = c.d;
    auto picked = [&](int i) { return d.picks[i]; };
    if (c.tid < d.n_picks) c.s.best[c.tid] = 0;
    await_x(c, d.x, d.epoch + d.n_layers - 1);
    norm_x<F16>(c, 2 * d.n_layers, d.n_picks, picked);
    multiply_head<F16>(c);
    all_meet();
    if (c.tid >= d.n_picks || d.targets[c.tid] < 0) return;
    atomicMax((unsigned long long *)&d.drawn[d.targets[c.tid]], (unsigned long long)c.s.best[c.tid]);
}

template <int W>
__device__ __forceinline__ void open(const cta<W> &c)
{
    const pl_cu_decode &d = c.d;
    if (threadIdx.x <= HEAD) {
        int op = threadIdx.x, heads = c.head_rows();
        int rows = op == QKV ? heads + 2 * c.kv_rows() : op == GATE_UP ? d.ffn : op == HEAD ? d.vocab + 7 : d.hidden;
        int columns = op == O ? heads : op == DOWN ? d.ffn : d.hidden, pieces = pieces_of(columns);
        c.s.products[op] = {share_of(rows / 8, blockIdx.x, d.ctas), columns, pieces, (columns - 1) / PL_CU_SLICE + 1,
                            65536u / pieces + 1, 0xffffffffu / (columns / 2) + 1,
                            op == QKV ? d.qkv : op == O ? d.middle : op == GATE_UP ? d.gated : d.x,
                            op == GATE_UP ? d.ffn / 2 : rows};
    }
    if (threadIdx.x == 0) {
        for (int i = 0; i < c.ring(); i++) open_barrier(c.s.full + i, 1), open_barrier(c.s.empty + i, 1);
        for (int i = 0; i < GROUPS; i++) open_barrier(c.s.kv_full + i, 1);
        open_barrier(&c.s.kv_empty, 1);
        barriers_opened();
    }
    const int *layers = (const int *)d.layers;
    for (int i = threadIdx.x; i < d.n_layers * (int)sizeof *d.layers / 4; i += DECODE_THREADS)
        ((int *)(c.memory + c.at.layers))[i] = layers[i];
    if (threadIdx.x < d.a.n_rows) c.s.rows[threadIdx.x] = d.a.rows[threadIdx.x];
    __syncthreads();
}

template <bool F16, int W>
__device__ __forceinline__ void compute_step(cta<W> &c)
{
    embed(c);
#pragma unroll 1
    for (int i = 0; i < c.d.n_layers; i++) compute_layer<F16>(c, i);
    if (c.d.n_picks) draw<F16>(c);
}

#endif

template <bool F16, int W>
__global__ void __launch_bounds__(DECODE_THREADS, 1) decode_step(const __grid_constant__ pl_cu_decode d, const __grid_constant__ layout at)
{
#if PL_HOPPER
    extern __shared__ __align__(1024) char memory[];
    __shared__ fixed_memory<W> fixed;
    cta<W> c = {d, fixed, memory, at};
    open(c);
    if (threadIdx.x < WARPS * 32) {
        take_registers<152>();
        attend_step<F16>(c);
    } else if (c.tid < CONSUMERS) {
        take_registers<152>();
        compute_step<F16>(c);
    } else {
        give_registers<56>();
        if (c.tid == CONSUMERS) stream_weights(c);
        else if (c.tid >= CONSUMERS + 32 && c.tid < CONSUMERS + 64) stream_cache(c);
    }
#endif
}

// ---- launches ------------------------------------------------------------------------------

void pl_cu_decode_packets(const pl_cu_decode *d, int64_t count[6])
{
    const pl_cu_attention *a = &d->a;
    int64_t rows = PL_CU_DECODE_ROWS, heads = a->n_heads * a->head_dim;
    count[0] = rows * (heads + 2 * a->n_kv_heads * a->head_dim);
    count[1] = (int64_t)PL_CU_DECODE_SPLITS * a->n_heads * (a->head_dim + 2);
    count[2] = rows * heads / 2;
    count[3] = count[5] = rows * d->hidden;
    count[4] = rows * d->ffn / 2;
}

// The most bytes of weights that one of so many CTAs streams per layer.
static int64_t longest_share(const pl_cu_decode *d, int ctas)
{
    int64_t heads = d->a.n_heads * d->a.head_dim, kv = d->a.n_kv_heads * d->a.head_dim;
    auto most = [&](int64_t units) { return (units + ctas - 1) / ctas; };
    return 16 * (most((heads + 2 * kv) / 8) * d->hidden + most(d->hidden / 8) * (heads + d->ffn) +
                 2 * most(d->ffn / 8) * d->hidden);
}

template <bool F16, int W>
static bool fits(pl_cu_decode *d, int n_rows)
{
    static const bool here = is_hopper(decode_step<F16, W>);
    static const int most = [] {
        int shared = 0;
        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
        shared -= (int)sizeof(fixed_memory<W>) + 1024;
        return here && !allow_shared(decode_step<F16, W>, shared) ? shared : 0;
    }();
    int sms = this_gpu().sms, units = d->hidden < d->ffn ? d->hidden / 8 : d->ffn / 8;
    if (sms > units) sms = units; // each CTA must publish part of every product
    int best = sms;
    for (int n = sms; n > sms - 8 && n > 0; n--)
        if (longest_share(d, n) < longest_share(d, best)) best = n;
    d->ctas = best;
    d->under_way = longest_share(d, best) < SMALL ? UNDER_WAY_SMALL : UNDER_WAY;
    for (d->depth = DEPTH; d->depth > 0; d->depth--)
        if (lay_out(*d, n_rows, d->depth).end <= most) return true;
    return false;
}

bool pl_cu_decode_fits(pl_cu_decode *d, int n_rows)
{
    const pl_cu_attention &a = d->a;
    bool even = d->hidden % 64 == 0 && d->ffn % 64 == 0 && a.n_heads * a.head_dim % 64 == 0;
    if (!even || a.n_heads / a.n_kv_heads > PL_CU_FEW || n_rows > PL_CU_DECODE_ROWS) return false;
    if (a.head_dim == 64) return d->f16 ? fits<true, 64>(d, n_rows) : fits<false, 64>(d, n_rows);
    if (a.head_dim == 128) return d->f16 ? fits<true, 128>(d, n_rows) : fits<false, 128>(d, n_rows);
    return false;
}

template <bool F16, int W>
static cudaError_t step(cudaStream_t s, const pl_cu_decode *d)
{
    cudaLaunchAttribute together = {};
    cudaLaunchConfig_t c = {};
    c.gridDim = d->ctas, c.blockDim = DECODE_THREADS, c.stream = s;
    layout at = lay_out(*d, d->a.n_rows, d->depth);
    c.dynamicSmemBytes = at.end;
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    c.attrs = &together;
    c.numAttrs = 1;
    return cudaLaunchKernelEx(&c, decode_step<F16, W>, *d, at);
}

cudaError_t pl_cu_decode_step(cudaStream_t s, const pl_cu_decode *d)
{
    if (d->a.head_dim == 64) return d->f16 ? step<true, 64>(s, d) : step<false, 64>(s, d);
    return d->f16 ? step<true, 128>(s, d) : step<false, 128>(s, d);
}

