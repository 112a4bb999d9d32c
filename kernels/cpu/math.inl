/* SPDX-License-Identifier: Apache-2.0
 *
 * What every kernel file needs on top of its lanes.
 */

static inline int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

/* To -most .. most; what is no number too. */
PL_INLINE vf bounded(vf v, float most)
{
    return vf_min(vf_max(v, vf_set1(-most)), vf_set1(most));
}

/* e^x: 2^n by the exponent's bits, the rest by a polynomial (relative error below 2^-22);
 * 0 below -87, where the result would leave the normal numbers. */
PL_INLINE vf vf_exp(vf x)
{
    vf y = vf_min(vf_max(x, vf_set1(-87.0f)), vf_set1(88.0f));
    vi n = vi_round(vf_mul(y, vf_set1(0x1.715476p+0f)));
    vf nf = vf_from_i(n);
    vf r = vf_fma(nf, vf_set1(-0x1.62e400p-1f), y);
    r = vf_fma(nf, vf_set1(-0x1.7f7d1cp-20f), r);
    vf p = vf_set1(0x1.6c16c2p-10f); /* 1/720 */
    p = vf_fma(p, r, vf_set1(0x1.111112p-7f));
    p = vf_fma(p, r, vf_set1(0x1.555556p-5f));
    p = vf_fma(p, r, vf_set1(0x1.555556p-3f));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    vf scale = vf_bits(vi_shl(vi_add(n, vi_set1(127)), 23));
    return vf_where_ge(x, -87.0f, vf_mul(p, scale));
}

/* cap * tanh(x / cap), as (e^2y - 1) / (e^2y + 1): right to 2^-23 of the cap. What is no
 * number stays none. */
PL_INLINE vf vf_cap(vf x, float cap)
{
    vf one = vf_set1(1.0f);
    vf e = vf_exp(vf_mul(x, vf_set1(2.0f / cap)));
    vf t = vf_div(vf_sub(e, one), vf_add(e, one));
    return vf_fma(t, vf_set1(cap), vf_mul(x, vf_set1(0.0f)));
}
