/* SPDX-License-Identifier: Apache-2.0
 *
 * Rotary positions: the frequencies, by the scaling that the model was trained with.
 */
#include "model_own.h"

#include <math.h>

static const double two_pi = 6.283185307179586476925286766559;

/* Low frequencies are slowed down by the factor, high ones kept, those between mixed. */
static double llama3(const pl_model_options *o, double inv)
{
    double wave = two_pi / inv, original = o->rope_original;
    if (wave < original / o->rope_high) return inv;
    if (wave > original / o->rope_low) return inv / o->rope_factor;
    double mix = (original / wave - o->rope_low) / (o->rope_high - o->rope_low);
    return (1 - mix) * inv / o->rope_factor + mix * inv;
}

/* The dimension that turns `turns` times over the original context. */
static double yarn_dimension(const pl_model_options *o, int dims, double turns)
{
    return dims * log(o->rope_original / (turns * two_pi)) / (2 * log(o->rope_theta));
}

static double yarn(const pl_model_options *o, int dims, double inv, int i)
{
    double slow = o->rope_low > 0 ? o->rope_low : 1,
           fast = o->rope_high > 0 ? o->rope_high : 32;
    double low = fmax(floor(yarn_dimension(o, dims, fast)), 0);
    double high = fmin(ceil(yarn_dimension(o, dims, slow)), dims - 1);
    if (low == high) high += 0.001;
    double ramp = fmin(fmax((i - low) / (high - low), 0), 1);
    return inv / o->rope_factor * ramp + inv * (1 - ramp);
}

void pl_model_rope_fill(pl_model *m)
{
    const pl_model_options *o = &m->o;
    const float *factors = m->rope_factors;
    int dims = m->plan.attention.rope_dims, half = dims / 2;
    pl_free(m->inv_freq);
    m->inv_freq = pl_alloc((size_t)half * sizeof *m->inv_freq);
    m->plan.rope_scale = o->rope_attention > 0 ? (double)o->rope_attention
                         : o->rope_scaling == PL_ROPE_YARN && o->rope_factor > 1
                             ? 0.1 * log(o->rope_factor) + 1
                             : 1;
    for (int i = 0; i < half; i++) {
        double inv = pow(o->rope_theta, -2.0 * i / dims);
        if (o->rope_scaling == PL_ROPE_LINEAR) inv /= o->rope_factor;
        if (o->rope_scaling == PL_ROPE_LLAMA3) inv = llama3(o, inv);
        if (o->rope_scaling == PL_ROPE_YARN) inv = yarn(o, dims, inv, i);
        m->inv_freq[i] = factors ? inv / factors[i] : inv;
    }
    m->plan.inv_freq = m->inv_freq;
    if (!o->window || !(o->rope_theta_window > 0)) return;
    pl_free(m->window_inv_freq);
    m->window_inv_freq = pl_alloc((size_t)half * sizeof *m->window_inv_freq);
    for (int i = 0; i < half; i++)
        m->window_inv_freq[i] = pow(o->rope_theta_window, -2.0 * i / dims);
    m->plan.window_inv_freq = m->window_inv_freq;
}

void pl_model_rope_at(const double *inv_freq, double scale, int n, int32_t position,
                      float *cosines, float *sines)
{
    for (int i = 0; i < n; i++) {
        double angle = position * inv_freq[i];
        cosines[i] = (float)(cos(angle) * scale);
        sines[i] = (float)(sin(angle) * scale);
    }
}
