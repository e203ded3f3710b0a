/* Attention of one position. */

#include "common.h"

#define SPAN 128 /* values that stay in the first cache while all their columns pass by */

/* The sums of BLOCK vectors. */
static inline __m128 sums_of(const __m512 *x) {
    const __m512 pairs = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    const __m512 others = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    const __m512d first = _mm512_castps_pd(pairs), second = _mm512_castps_pd(others);
    const __m512 both = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(first, second)),
                                      _mm512_castpd_ps(_mm512_unpackhi_pd(first, second)));
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(both), 1));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(both), upper);
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* A width, a multiple of 16, made one of 32. */
static inline int64_t padded_to_pairs(int64_t width) { return (width + 31) / 32 * 32; }

/* The products of `rows` <= BLOCK query heads with bfloat16 keys, in rows `stride` apart. */
INLINE void dense_scores(
    const uint16_t *q, const char *keys, int64_t length, int64_t width, int rows, int pairs, float *scores,
    int64_t stride) {
    for (int64_t l = 0; l < length; l += BLOCK) {
        __m512 dots[BLOCK][BLOCK];
        const uint16_t *near[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            near[i] = (const uint16_t *)keys + (l + i < length ? l + i : length - 1) * width;
        for (int m = 0; m < rows; m++)
            for (int i = 0; i < BLOCK; i++) dots[m][i] = _mm512_setzero_ps();
        for (int64_t c = 0; c < BLOCK * width; c += 32)
            _mm_prefetch((const char *)(near[0] + c) + ahead / 2, _MM_HINT_T0);
        for (int64_t c = 0; c < width; c += 32) {
            const __mmask32 real = columns_of(width - c);
            __m512i key[BLOCK];
            for (int i = 0; i < BLOCK; i++) key[i] = _mm512_maskz_loadu_epi16(real, near[i] + c);
            for (int m = 0; m < rows; m++) {
                const __m512i query = _mm512_maskz_loadu_epi16(real, q + m * width + c);
                for (int i = 0; i < BLOCK; i++) dots[m][i] = add_products(dots[m][i], key[i], query, pairs);
            }
        }
        for (int m = 0; m < rows; m++) _mm_storeu_ps(scores + m * stride + l, sums_of(dots[m]));
    }
}

/* The same with int8 keys, without their scales, of a width that is a multiple of 64 and at most 256: bytes with bytes,
   as in quantized_product; room for BLOCK times 2 * width. */
INLINE void quantized_scores(
    const uint16_t *q, const char *keys, int64_t length, int64_t width, int rows, float *scores, int64_t stride,
    float *room) {
    int8_t *bytes = (int8_t *)(room + 2 * BLOCK);
    const Numbers x = {bytes, room, room + BLOCK};
    const __m512i signs = _mm512_set1_epi8((char)128);
    for (int m = 0; m < rows; m++) to_numbers(q, width, width, x, m);
    char *last = (char *)(bytes + 2 * BLOCK * width);
    for (int64_t l = 0; l < length; l += TILE) {
        const char *near = keys + l * width;
        /* Nothing is read beyond the last key; what then stands in for keys becomes no weight. */
        if (length - l < TILE) near = memcpy(last, near, (length - l) * width);
        __m512i high[BLOCK], low[BLOCK];
        for (int m = 0; m < rows; m++) high[m] = low[m] = _mm512_setzero_si512();
        for (int64_t c = 0; c < width; c += 64) {
            __m512i codes[TILE];
            for (int i = 0; i < TILE; i++) {
                codes[i] = _mm512_xor_si512(_mm512_loadu_si512(near + i * width + c), signs);
                _mm_prefetch(near + i * width + c + ahead / 2, _MM_HINT_T0);
            }
            transpose(codes);
#pragma GCC unroll 16
            for (int i = 0; i < TILE; i++)
                for (int m = 0; m < rows; m++) {
                    const int8_t *number = bytes + 2 * m * width + c + 4 * i;
                    high[m] = _mm512_dpbusd_epi32(high[m], codes[i], four(number));
                    low[m] = _mm512_dpbusd_epi32(low[m], codes[i], four(number + width));
                }
        }
        for (int m = 0; m < rows; m++) {
            __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[m], 8), low[m]));
            sum = _mm512_fnmadd_ps(_mm512_set1_ps(128), _mm512_set1_ps(x.sums[m]), sum);
            _mm512_storeu_ps(scores + m * stride + l, _mm512_mul_ps(sum, _mm512_set1_ps(x.scales[m])));
        }
    }
}

/* Numbers of 16 vectors, from `l` on, times the scales of those that are `real`. */
static inline __m512 scaled(__m512 y, Vectors x, int64_t l, __mmask16 real) {
    if (!x.scales) return y;
    return _mm512_mul_ps(y, widened_real(x.scales + l, real));
}

static inline __mmask16 real_of(int64_t count) { return count < 16 ? (1 << count) - 1 : 0xffff; }

/* Make of one head's products, times `factor` and the keys' scales, the weights of the values, times their scales.
   Returns the sum of the weights themselves. */
static float softmax(float *row, Vectors keys, Vectors values, int64_t length, float factor) {
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 most = lowest, sum = _mm512_setzero_ps();
    for (int64_t l = 0; l < length; l += 16) {
        const __mmask16 real = real_of(length - l);
        const __m512 dot = scaled(_mm512_loadu_ps(row + l), keys, l, real);
        const __m512 score = _mm512_mask_mul_ps(lowest, real, dot, _mm512_set1_ps(factor));
        most = _mm512_max_ps(score, most);
        _mm512_storeu_ps(row + l, score);
    }
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int64_t l = 0; l < length; l += 16) {
        const __mmask16 real = real_of(length - l);
        const __m512 weight = _mm512_maskz_mov_ps(real, exponential(_mm512_sub_ps(_mm512_loadu_ps(row + l), most)));
        sum = _mm512_add_ps(sum, weight);
        _mm512_storeu_ps(row + l, scaled(weight, values, l, real));
    }
    return _mm512_reduce_add_ps(sum);
}

/* Add to `pairs` times 32 columns of `totals`, in rows `padded` apart and of each 32 first the even ones, `count`
   bfloat16 values times their weights, which stand in rows `stride` apart. `left`: of the columns, from these on. */
INLINE void add_columns(const uint16_t *values, const float *weights, int64_t stride, int64_t count, int64_t width,
                        int64_t left, int rows, int pairs, float *totals, int64_t padded) {
    __m512 first[BLOCK][2], second[BLOCK][2];
    for (int m = 0; m < rows; m++)
        for (int i = 0; i < pairs; i++) {
            first[m][i] = _mm512_loadu_ps(totals + m * padded + 32 * i);
            second[m][i] = _mm512_loadu_ps(totals + m * padded + 32 * i + 16);
        }
    for (int64_t l = 0; l < count; l++, values += width) {
        __m512i value[2];
        for (int i = 0; i < pairs; i++) {
            value[i] = _mm512_maskz_loadu_epi16(columns_of(left - 32 * i), values + 32 * i);
            _mm_prefetch((const char *)(values + 32 * i) + ahead / 2, _MM_HINT_T0);
        }
        for (int m = 0; m < rows; m++) {
            const __m512 weight = _mm512_set1_ps(weights[m * stride + l]);
            for (int i = 0; i < pairs; i++) {
                first[m][i] = _mm512_fmadd_ps(evens(value[i]), weight, first[m][i]);
                second[m][i] = _mm512_fmadd_ps(odds(value[i]), weight, second[m][i]);
            }
        }
    }
    for (int m = 0; m < rows; m++)
        for (int i = 0; i < pairs; i++) {
            _mm512_storeu_ps(totals + m * padded + 32 * i, first[m][i]);
            _mm512_storeu_ps(totals + m * padded + 32 * i + 16, second[m][i]);
        }
}

INLINE void add_dense(const char *values, const float *weights, int64_t stride, int64_t count, int64_t width, int rows,
                      float *totals) {
    const uint16_t *value = (const uint16_t *)values;
    const int64_t padded = padded_to_pairs(width);
    int64_t c = 0;
    for (; c + 32 < width; c += 64)
        add_columns(value + c, weights, stride, count, width, width - c, rows, 2, totals + c, padded);
    if (c < width) add_columns(value + c, weights, stride, count, width, width - c, rows, 1, totals + c, padded);
}

/* Make of `count` <= SPAN weights, none below zero, whole numbers of 15 bits, and return their scale. */
static float to_whole(const float *weights, int64_t count, int16_t *numbers) {
    __m512 most = _mm512_setzero_ps();
    __mmask16 bad = 0;
    for (int64_t l = 0; l < count; l += 16) {
        const __m512 weight = _mm512_loadu_ps(weights + l);
        bad |= _mm512_cmp_ps_mask(weight, weight, _CMP_UNORD_Q);
        most = _mm512_max_ps(most, weight);
    }
    /* As in to_numbers. */
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 factor = _mm512_set1_ps(largest > 1e-30f && largest < INFINITY ? 32767 / largest : 0);
    for (int64_t l = 0; l < count; l += 16) {
        const __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(weights + l), factor));
        _mm256_storeu_si256((void *)(numbers + l), _mm512_cvtepi32_epi16(number));
    }
    return bad ? NAN : largest / 32767;
}

/* Add to `totals` [rows, width] at most SPAN int8 values times their weights, two and two. The weights become whole
   numbers too: sums are exact. Where `count` is odd the weight after the last is 0. */
INLINE void add_quantized(
    const char *values, const float *weights, int64_t stride, int64_t count, int64_t width, int rows, float *totals) {
    int16_t numbers[BLOCK][SPAN];
    float scales[BLOCK];
    for (int m = 0; m < rows; m++) scales[m] = to_whole(weights + m * stride, count, numbers[m]);
    for (int64_t c = 0; c < width; c += 64) {
        __m512i sums[BLOCK][4];
        for (int m = 0; m < rows; m++)
            for (int i = 0; i < 4; i++) sums[m][i] = _mm512_setzero_si512();
        for (int64_t l = 0; l < count; l += 2) {
            const char *value = values + l * width + c, *next = l + 1 < count ? value + width : value;
            __m512i pairs[4];
            _mm_prefetch(value + ahead / 2, _MM_HINT_T0);
            _mm_prefetch(value + ahead / 2 + width, _MM_HINT_T0);
            for (int i = 0; i < 4; i += 2) {
                const __m512i one = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)(value + 16 * i)));
                const __m512i two = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)(next + 16 * i)));
                pairs[i] = _mm512_unpacklo_epi16(one, two);
                pairs[i + 1] = _mm512_unpackhi_epi16(one, two);
            }
            for (int m = 0; m < rows; m++) {
                const __m512i weight = four((const int8_t *)(numbers[m] + l));
                for (int i = 0; i < 4; i++) sums[m][i] = _mm512_dpwssd_epi32(sums[m][i], pairs[i], weight);
            }
        }
        /* Of every 8 columns, pairs were made of the first 4 and of the last 4 apart. */
        const __m512i even = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        for (int m = 0; m < rows; m++)
            for (int i = 0; i < 4; i++) {
                const __m512i order = _mm512_add_epi32(even, _mm512_set1_epi32(i % 2 * 8));
                const __m512i sum = _mm512_permutex2var_epi32(sums[m][i & 2], order, sums[m][i | 1]);
                float *total = totals + m * width + c + 16 * i;
                _mm512_storeu_ps(total, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scales[m]),
                                                        _mm512_loadu_ps(total)));
            }
    }
}

/* `rows` <= BLOCK query heads [rows, width] over the keys and values of one group, in 8 or 16 `bits`; room for BLOCK
   times [length + 16 + 2 * width]. */
INLINE void attend_heads(
    const uint16_t *q, Vectors keys, Vectors values, uint16_t *out, int64_t length, int64_t width, int rows, int bits,
    float *weights) {
    const int64_t stride = (length + 15) / 16 * 16;
    float sums[BLOCK], *totals = weights + BLOCK * stride;
    if (bits == 8) quantized_scores(q, keys.numbers, length, width, rows, weights, stride, totals);
    else if (by_pairs) dense_scores(q, keys.numbers, length, width, rows, 1, weights, stride);
    else dense_scores(q, keys.numbers, length, width, rows, 0, weights, stride);
    for (int m = 0; m < rows; m++) sums[m] = softmax(weights + m * stride, keys, values, length, 1 / sqrtf(width));
    const int64_t padded = padded_to_pairs(width);
    for (int64_t c = 0; c < rows * padded; c++) totals[c] = 0;
    for (int64_t l = 0; l < length; l += SPAN) {
        const int64_t count = length - l < SPAN ? length - l : SPAN;
        const char *near = values.numbers + l * width * bits / 8;
        if (bits == 8) add_quantized(near, weights + l, stride, count, width, rows, totals);
        else add_dense(near, weights + l, stride, count, width, rows, totals);
    }
    for (int m = 0; m < rows; m++, out += width)
        for (int64_t c = 0; c < width; c += 32) {
            const __m512 factor = _mm512_set1_ps(1 / sums[m]);
            const __m512 first = _mm512_mul_ps(_mm512_loadu_ps(totals + m * padded + c), factor);
            const __m512 second = _mm512_mul_ps(_mm512_loadu_ps(totals + m * padded + c + 16), factor);
            if (bits == 16) {
                narrow_pairs(out + c, columns_of(width - c), first, second);
            } else {
                narrow(out + c, first);
                narrow(out + c + 16, second);
            }
        }
}

#define ATTEND(bits)                                                                                       \
    switch (rows) {                                                                                        \
    case 1: attend_heads(q + at, keys, values, out + at, length, width, 1, bits, room + i * size); break;  \
    case 2: attend_heads(q + at, keys, values, out + at, length, width, 2, bits, room + i * size); break;  \
    case 3: attend_heads(q + at, keys, values, out + at, length, width, 3, bits, room + i * size); break;  \
    default: attend_heads(q + at, keys, values, out + at, length, width, 4, bits, room + i * size);        \
    }

/* out [groups * per, width]: queries of the same shape over keys and values, `kv`; width a multiple of 16, and of int8
   as quantized_scores wants it. Returns 1 where memory ran out. */
int attend_one(const uint16_t *q, const Vectors *kv, uint16_t *out, int64_t groups, int64_t per, int64_t length,
               int64_t width, int64_t threads) {
    const int64_t size = BLOCK * (length + 16 + 2 * width), parts = (per + BLOCK - 1) / BLOCK;
    float *room = malloc(4 * size * groups * parts);
    if (!room) return 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (2 * groups * per * length * width > SMALL)
    for (int64_t i = 0; i < groups * parts; i++) {
        const int64_t g = i / parts, first = i % parts * BLOCK, at = (g * per + first) * width;
        const int64_t rows = per - first < BLOCK ? per - first : BLOCK;
        const Vectors keys = group_of(kv[0], g), values = group_of(kv[1], g);
        if (keys.scales) { ATTEND(8) } else { ATTEND(16) }
    }
    free(room);
    return 0;
}
