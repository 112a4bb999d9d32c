/* SPDX-License-Identifier: Apache-2.0
 *
 * mathx.h - exp and log that give the same bits on every machine: only +, -, * and / of
 * IEEE 754, in a written order. (libm's differ from one to the next.) A GPU's compiler must
 * be told not to contract them (-fmad=false).
 *
 * Thread   any.
 */
#ifndef PL_MATHX_H
#define PL_MATHX_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define PL_MATH static inline __host__ __device__
#else
#define PL_MATH static inline
#endif

/* e^x within 1.2 ulp, for x from -104 (where it is 0) to 88: the caller sees to that. (A
 * clamp in here would be taken apart into branches, and loops over it are to become
 * SIMD.) */
PL_MATH float pl_exp(float x)
{
    float k =
        x * 0x1.715476p+0f + 0x1.8p+23f; /* rounds: the sum has no room for fractions */
    k -= 0x1.8p+23f;
    float r = x - k * 0x1.62e4p-1f; /* exact: the factor is short */
    r -= k * 0x1.7f7d1cp-20f;
    float p = 1.f / 5040;
    p = p * r + 1.f / 720;
    p = p * r + 1.f / 120;
    p = p * r + 1.f / 24;
    p = p * r + 1.f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.f;
    /* 2^k in two factors: k reaches from -150 to 128 */
    int32_t n = (int32_t)k, half = n >> 1;
    uint32_t low = (uint32_t)(half + 127) << 23, high = (uint32_t)(n - half + 127) << 23;
    float a, b;
    memcpy(&a, &low, sizeof a);
    memcpy(&b, &high, sizeof b);
    return p * a * b;
}

/* ln x within 2e-15 of its size, for positive normal x. */
PL_MATH double pl_ln(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int k = (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | (uint64_t)1023 << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 0x1.6a09e667f3bcdp+0) m *= 0.5, k++;
    double s = (m - 1) / (m + 1), z = s * s, sum = 0; /* ln m = 2 artanh s */
    for (int i = 23; i >= 3; i -= 2) sum = (sum + 1.0 / i) * z;
    return k * 0x1.62e42fefa39efp-1 + 2 * (s + s * sum);
}

#endif
