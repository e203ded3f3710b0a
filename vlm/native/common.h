/* What torch does slowly on the CPU, for processors with AVX-512 VNNI: what its files share. Built and loaded by
   binding.py. */

#pragma once

#include "vectors.h" /* in vision_encoder/native; TILE is also how many rows of weights lie together */

#define BLOCK 4 /* rows of x, or query heads, that share what was read */
#define SMALL (1 << 18) /* multiplications that one thread has done before another is awake */

/* How many bytes ahead of what is read is asked for; of weights in 4 bits, which take longer to multiply than to read.
   AMD's own prefetchers are better left alone with the others. */
extern int64_t ahead, ahead_of_4;

/* Whether the processor multiplies pairs of bfloat16 (AVX512-BF16). */
extern int by_pairs;

typedef struct {
    const uint8_t *codes;    /* [out / 16, lines, 64]; where weights are bfloat16 these, [out, cols] */
    const uint16_t *scales;  /* bfloat16: [out / 16, groups, 16], or [out] where rows are not grouped */
    const uint16_t *zeros;   /* bfloat16 [out / 16, groups, 16]: the code that stands for 0; NULL: the middle one */
    int64_t out;
} Weights;

/* A product with several weights of one kind, whose results stand side by side. */
typedef struct {
    int64_t cols, out, bits; /* out: of all weights */
    int64_t group, grouped;  /* columns of x that share a scale; whether each such group of weights has one, or a row */
    Weights weights[];
} Product;

/* Keys or values, [groups, length, width]: bfloat16, or int8 with a scale for each vector. */
typedef struct {
    const char *numbers;
    int64_t stride;         /* bytes from one group to the next */
    const uint16_t *scales; /* bfloat16 [groups, length]; NULL where the numbers are bfloat16 */
    int64_t scales_stride;
} Vectors;

static inline Vectors group_of(Vectors x, int64_t g) {
    x.numbers += g * x.stride;
    if (x.scales) x.scales += g * x.scales_stride;
    return x;
}

typedef struct {
    int8_t *bytes;        /* [rows, groups, 2, group]: of each group the high bytes, then the low ones */
    float *scales, *sums; /* [rows, groups]; the sums are of the whole numbers */
} Numbers;

/* Those of 16 numbers that are `real`, the others 0. */
static inline __m512 widened_real(const uint16_t *x, __mmask16 real) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(real, x)), 16));
}

static inline __mmask16 real_of(int64_t count) { return count < 16 ? (1 << count) - 1 : 0xffff; }

static inline __m512 widened(const uint16_t *x) { return widened_real(x, 0xffff); }

/* The even and the odd ones of 32 numbers in bfloat16: widened so at half the cost of in their order. */
static inline __m512 evens(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

static inline __m512 odds(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

/* Sums of the products of 32 and 32 numbers in bfloat16, by pairs or one by one. */
INLINE __m512 add_products(__m512 to, __m512i one, __m512i two, int pairs) {
    if (!pairs) return _mm512_fmadd_ps(odds(one), odds(two), _mm512_fmadd_ps(evens(one), evens(two), to));
    /* In assembler: the compiler is told to build for processors without the instruction too. */
    asm("vdpbf16ps %2, %1, %0" : "+v"(to) : "v"(one), "v"(two));
    return to;
}

/* Which of 32 columns are there, of a width that is a multiple of 16. */
static inline __mmask32 columns_of(int64_t left) { return left < 32 ? 0xffff : 0xffffffff; }

/* Round to bfloat16, which stands in the upper half, to the nearest, ties to even; NaN stays NaN. */
static inline __m512i rounded(__m512 y) {
    const __m512i whole = _mm512_castps_si512(y);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(whole, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(whole, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
}

/* Store as bfloat16 what is `real`. */
static inline void narrow_real(uint16_t *to, __mmask16 real, __m512 y) {
    _mm256_mask_storeu_epi16(to, real, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(y), 16)));
}

static inline void narrow(uint16_t *to, __m512 y) { narrow_real(to, 0xffff, y); }

/* The same of those of 32 numbers that are `real`, which stand as even and odd ones. */
static inline void narrow_pairs(uint16_t *to, __mmask32 real, __m512 even, __m512 odd) {
    const __m512i upper = _mm512_and_si512(rounded(odd), _mm512_set1_epi32((int)0xffff0000));
    _mm512_mask_storeu_epi16(to, real, _mm512_or_si512(upper, _mm512_srli_epi32(rounded(even), 16)));
}

static inline __m512i four(const int8_t *x) {
    int32_t bytes;
    memcpy(&bytes, x, 4);
    return _mm512_set1_epi32(bytes);
}

static inline __m512 exponential(__m512 x) {
    /* Where one of two is no number the second is taken: what is none stays none. */
    const __m512 powers = _mm512_max_ps(_mm512_set1_ps(-126), _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)));
    const __m512 whole = _mm512_roundscale_ps(powers, 8);
    const __m512 rest = _mm512_mul_ps(_mm512_sub_ps(powers, whole), _mm512_set1_ps(0.69314718f));
    __m512 series = _mm512_set1_ps(1 / 720.0f);
    const float factors[] = {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1, 1};
    for (int i = 0; i < 6; i++) series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(series, whole);
}

void to_numbers(const uint16_t *x, int64_t cols, int64_t group, Numbers to, int64_t row);
int product(const uint16_t *x, uint16_t *out, int64_t rows, const Product *by, int64_t threads);
void rms_norm(const uint16_t *x, const uint16_t *weight, uint16_t *out, int64_t rows, int64_t cols, double eps);
void gated(const uint16_t *x, uint16_t *out, int64_t rows, int64_t cols, int64_t threads);
void rotate(uint16_t *x, const float *cosines, const float *sines, int64_t rows, int64_t positions, int64_t heads,
            int64_t turned, int64_t width, int64_t threads);
void attend_quantized(const uint16_t *q, Vectors keys, Vectors values, uint16_t *out, int64_t length, int64_t width,
                      int64_t rows);
int attend_one(const uint16_t *q, const Vectors *kv, uint16_t *out, int64_t groups, int64_t per, int64_t length,
               int64_t width, int64_t threads);
