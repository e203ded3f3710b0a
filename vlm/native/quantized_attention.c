/* Attention of one position over keys and values in int8.

   Positions go by in spans. What is made of one stays in the first cache: scores, then weights, then these as whole
   numbers. Totals are kept for the highest score so far, and shrink when a higher one comes. While the keys of a span
   are multiplied its values are asked for, and while these are, the next keys: into the second cache, for the first has
   no room for them. */

#include "common.h"

#define SPAN 256      /* positions; of up to 512 the sums of values fit into 32 bits */
#define WIDEST 256    /* numbers of a head */
#define LOWEST -3e38f /* the score of what is not there: beside the highest its weight is nothing */

/* A query head. */
typedef struct {
    _Alignas(64) int8_t bytes[2 * WIDEST]; /* as whole numbers, see to_numbers; with `size` and `sum` */
    float size, sum;
    __m512 highest, weights; /* the highest score, and in lanes the sum of all weights */
    __m512 kept, scale;      /* what totals of earlier spans are multiplied by; the scale of this span's weights */
    __m512 totals[WIDEST / 16];
} Head;

/* Add to each of 16 sums four products of bytes, or two of pairs of bytes, all with what is at `x`. In assembler: the
   compiler loads that by an instruction of its own, which takes a sixth longer. */
static inline __m512i add_bytes(__m512i to, __m512i bytes, const void *x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(to) : "v"(bytes), "m"(*(const char (*)[4])x));
    return to;
}

static inline __m512i add_pairs(__m512i to, __m512i pairs, const void *x) {
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(to) : "v"(pairs), "m"(*(const char (*)[4])x));
    return to;
}

/* 2 to the power of x, to 3e-7 of it; of what is below -100, as of -100. */
static inline __m512 power_of_two(__m512 x) {
    /* In this order what is no number stays none. */
    const __m512 powers = _mm512_max_ps(_mm512_set1_ps(-100), x), whole = _mm512_roundscale_ps(powers, 8);
    const __m512 rest = _mm512_sub_ps(powers, whole);
    /* The polynomial whose largest error from -1/2 to 1/2 is smallest. */
    const float factors[] = {0.00967554f, 0.05550713f, 0.2402212f, 0.69314697f, 1};
    __m512 series = _mm512_set1_ps(0.00132764f);
    for (int i = 0; i < 5; i++) series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(series, whole);
}

/* Add to `high` and `low`, of each head, the products of 64 columns of 16 keys; `x` and `low_x`: of these columns the
   bytes of the first head. Keys are turned from lines to columns, of which four at a time are ready. */
INLINE void add_keys(__m512i *codes, const int8_t *x, const int8_t *low_x, int rows, __m512i *high, __m512i *low) {
    /* The compiler would keep an address for each of 128 loads. */
    asm("" : "+r"(x), "+r"(low_x));
    put_by_fours(codes);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m512i y[4], words[4];
        for (int i = 0; i < 2; i++) {
            const int parts = i ? 0xdd : 0x88;
            y[i] = _mm512_shuffle_i32x4(codes[k], codes[k + 4], parts);
            y[i + 2] = _mm512_shuffle_i32x4(codes[k + 8], codes[k + 12], parts);
        }
        for (int i = 0; i < 2; i++) {
            words[i] = _mm512_shuffle_i32x4(y[i], y[i + 2], 0x88);
            words[i + 2] = _mm512_shuffle_i32x4(y[i], y[i + 2], 0xdd);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            for (int m = 0; m < rows; m++) {
                const int64_t at = m * sizeof(Head) + 16 * i + 4 * k;
                high[m] = add_bytes(high[m], words[i], x + at);
                low[m] = add_bytes(low[m], words[i], low_x + at);
            }
    }
}

/* The scores of `count` <= SPAN keys, as powers of two; asks for what is at `next`. */
INLINE void score(const Head *heads, Vectors keys, int64_t count, int64_t width, int rows, const char *next,
                  float (*scores)[SPAN]) {
    const __m512i signs = _mm512_set1_epi8((char)128);
    const __m512 factor = _mm512_set1_ps(1.44269504f / sqrtf(width));
    _Alignas(64) char last[TILE * WIDEST];
    for (int64_t l = 0; l < count; l += TILE) {
        const __mmask16 real = real_of(count - l);
        const char *near = keys.numbers + l * width;
        /* Nothing is read beyond the last key; what then stands in for keys becomes no weight. */
        if (count - l < TILE) near = memcpy(last, near, (count - l) * width);
        __m512i high[BLOCK], low[BLOCK];
        for (int m = 0; m < rows; m++) {
            high[m] = _mm512_setzero_si512();
            low[m] = _mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_set1_ps(-heads[m].sum)), 7);
        }
        for (int64_t c = 0; c < width; c += 64) {
            const char *line = near + c;
            __m512i codes[TILE];
            for (int i = 0; i < TILE; i++, line += width, next += 64) {
                codes[i] = _mm512_xor_si512(_mm512_loadu_si512(line), signs);
                _mm_prefetch(next, _MM_HINT_T1);
            }
            add_keys(codes, heads->bytes + c, heads->bytes + width + c, rows, high, low);
        }
        const __m512 scale = _mm512_mul_ps(widened_real(keys.scales + l, real), factor);
        for (int m = 0; m < rows; m++) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[m], 8), low[m]));
            const __m512 times = _mm512_mul_ps(scale, _mm512_set1_ps(heads[m].size));
            _mm512_store_ps(scores[m] + l, _mm512_mask_mul_ps(_mm512_set1_ps(LOWEST), real, sum, times));
        }
    }
}

/* Make of scores weights, times the scales of the values, and of these whole numbers of 15 bits. */
INLINE void weigh(Head *heads, float (*scores)[SPAN], const uint16_t *scales, int64_t count, int rows,
                  int16_t (*numbers)[SPAN]) {
    __m512 sum[BLOCK];
    __m512i largest[BLOCK];
    for (int m = 0; m < rows; m++) {
        Head *head = heads + m;
        __m512 highest = _mm512_set1_ps(LOWEST);
        for (int64_t l = 0; l < count; l += 16) highest = _mm512_max_ps(_mm512_load_ps(scores[m] + l), highest);
        highest = _mm512_max_ps(head->highest, _mm512_set1_ps(_mm512_reduce_max_ps(highest)));
        head->kept = power_of_two(_mm512_sub_ps(head->highest, highest));
        head->highest = highest;
        sum[m] = _mm512_mul_ps(head->weights, head->kept);
        largest[m] = _mm512_setzero_si512();
    }
    for (int64_t l = 0; l < count; l += 16) {
        const __m512 scale = widened_real(scales + l, real_of(count - l));
        for (int m = 0; m < rows; m++) {
            __m512 weight = power_of_two(_mm512_sub_ps(_mm512_load_ps(scores[m] + l), heads[m].highest));
            sum[m] = _mm512_add_ps(sum[m], weight);
            weight = _mm512_mul_ps(weight, scale);
            /* None is below zero, so their bits are in the same order, and what is no number is the largest. */
            largest[m] = _mm512_max_epu32(largest[m], _mm512_castps_si512(weight));
            _mm512_store_ps(scores[m] + l, weight);
        }
    }
    for (int m = 0; m < rows; m++) {
        const __m512i bits = _mm512_set1_epi32(_mm512_reduce_max_epu32(largest[m]));
        const float most = _mm512_cvtss_f32(_mm512_castsi512_ps(bits));
        /* As in to_numbers. */
        const __m512 factor = _mm512_set1_ps(most > 1e-30f && most < INFINITY ? 32767 / most : 0);
        heads[m].scale = _mm512_set1_ps(most / 32767);
        heads[m].weights = sum[m];
        for (int64_t l = 0; l < count; l += 16) {
            const __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(scores[m] + l), factor));
            _mm256_store_si256((void *)(numbers[m] + l), _mm512_cvtepi32_epi16(number));
        }
    }
}

/* Add to the totals `count` <= SPAN values times their weights, four at a time: the weights after the last are 0. Of 64
   columns a total holds four of each 16. Asks for what is at `next`. */
INLINE void add_values(Head *heads, const char *values, int16_t (*numbers)[SPAN], int64_t count, int64_t width,
                       int rows, const char *next) {
    for (int64_t c = 0; c < width; c += 64) {
        const char *value = values + c;
        __m512i sums[BLOCK][4];
        for (int m = 0; m < rows; m++)
            for (int i = 0; i < 4; i++) sums[m][i] = _mm512_setzero_si512();
        for (int64_t l = 0; l < count; l += 4) {
            __m512i lines[4], two[4], four[4];
            for (int i = 0; i < 4; i++, next += 64) {
                lines[i] = _mm512_loadu_si512(value);
                if (l + i + 1 < count) value += width; /* nothing is read beyond the last */
                _mm_prefetch(next, _MM_HINT_T1);
            }
            /* Bytes of the lines 0, 2, 1 and 3 side by side: the lower ones of two words, then the upper ones. */
            for (int i = 0; i < 2; i++) {
                two[i] = _mm512_unpacklo_epi8(lines[i], lines[i + 2]);
                two[i + 2] = _mm512_unpackhi_epi8(lines[i], lines[i + 2]);
            }
            for (int i = 0; i < 4; i += 2) {
                four[i] = _mm512_unpacklo_epi16(two[i], two[i + 1]);
                four[i + 1] = _mm512_unpackhi_epi16(two[i], two[i + 1]);
            }
            for (int i = 0; i < 4; i++) {
                const __m512i first = _mm512_srai_epi16(_mm512_slli_epi16(four[i], 8), 8);
                const __m512i second = _mm512_srai_epi16(four[i], 8);
                for (int m = 0; m < rows; m++) {
                    sums[m][i] = add_pairs(sums[m][i], first, numbers[m] + l);
                    sums[m][i] = add_pairs(sums[m][i], second, numbers[m] + l + 2);
                }
            }
        }
        for (int m = 0; m < rows; m++)
            for (int i = 0; i < 4; i++) {
                __m512 *total = heads[m].totals + c / 16 + i;
                *total = _mm512_mul_ps(*total, heads[m].kept);
                *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[m][i]), heads[m].scale, *total);
            }
    }
}

INLINE void attend_spans(
    const uint16_t *q, Vectors keys, Vectors values, uint16_t *out, int64_t length, int64_t width, int rows) {
    Head heads[BLOCK];
    _Alignas(64) float scores[BLOCK][SPAN];
    _Alignas(64) int16_t numbers[BLOCK][SPAN];
    for (int m = 0; m < rows; m++) {
        Head *head = heads + m;
        to_numbers(q + m * width, width, width, (Numbers){head->bytes, &head->size, &head->sum}, 0);
        head->highest = _mm512_set1_ps(LOWEST);
        head->weights = _mm512_setzero_ps();
        for (int i = 0; i < width / 16; i++) head->totals[i] = _mm512_setzero_ps();
    }
    for (int64_t left = length; left > 0; left -= SPAN) {
        const int64_t count = left < SPAN ? left : SPAN;
        score(heads, keys, count, width, rows, values.numbers, scores);
        weigh(heads, scores, values.scales, count, rows, numbers);
        keys.numbers += SPAN * width, keys.scales += SPAN;
        add_values(heads, values.numbers, numbers, count, width, rows, keys.numbers);
        values.numbers += SPAN * width, values.scales += SPAN;
    }
    for (int m = 0; m < rows; m++) {
        const __m512 factor = _mm512_set1_ps(1 / _mm512_reduce_add_ps(heads[m].weights));
        for (int64_t c = 0; c < width; c += 16, out += 16) {
            const float *total = (const float *)(heads[m].totals + c / 64 * 4) + c % 64 / 4;
            _Alignas(64) float y[16];
            for (int i = 0; i < 4; i++) _mm_store_ps(y + 4 * i, _mm_load_ps(total + 16 * i));
            narrow(out, _mm512_mul_ps(_mm512_load_ps(y), factor));
        }
    }
}

/* out [rows, width]: queries of the same shape, `rows` <= BLOCK, over the keys and values of one group; width a
   multiple of 64, at most WIDEST. */
void attend_quantized(
    const uint16_t *q, Vectors keys, Vectors values, uint16_t *out, int64_t length, int64_t width, int64_t rows) {
    switch (rows) {
    case 1: attend_spans(q, keys, values, out, length, width, 1); break;
    case 2: attend_spans(q, keys, values, out, length, width, 2); break;
    case 3: attend_spans(q, keys, values, out, length, width, 3); break;
    default: attend_spans(q, keys, values, out, length, width, 4);
    }
}
