/* Attention of one position, over keys and values in bfloat16. */

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

/* Make of one head's products, times `factor`, the weights of the values. Returns their sum. */
static float softmax(float *row, int64_t length, float factor) {
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 most = lowest, sum = _mm512_setzero_ps();
    for (int64_t l = 0; l < length; l += 16) {
        const __m512 dot = _mm512_loadu_ps(row + l);
        const __m512 score = _mm512_mask_mul_ps(lowest, real_of(length - l), dot, _mm512_set1_ps(factor));
        most = _mm512_max_ps(score, most);
        _mm512_storeu_ps(row + l, score);
    }
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int64_t l = 0; l < length; l += 16) {
        const __m512 power = exponential(_mm512_sub_ps(_mm512_loadu_ps(row + l), most));
        const __m512 weight = _mm512_maskz_mov_ps(real_of(length - l), power);
        sum = _mm512_add_ps(sum, weight);
        _mm512_storeu_ps(row + l, weight);
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

/* `rows` <= BLOCK query heads [rows, width] over the bfloat16 keys and values of one group; room for BLOCK times
   [length + 16 + 2 * width]. */
INLINE void attend_dense(
    const uint16_t *q, Vectors keys, Vectors values, uint16_t *out, int64_t length, int64_t width, int rows,
    float *weights) {
    const int64_t stride = (length + 15) / 16 * 16;
    float sums[BLOCK], *totals = weights + BLOCK * stride;
    if (by_pairs) dense_scores(q, keys.numbers, length, width, rows, 1, weights, stride);
    else dense_scores(q, keys.numbers, length, width, rows, 0, weights, stride);
    for (int m = 0; m < rows; m++) sums[m] = softmax(weights + m * stride, length, 1 / sqrtf(width));
    const int64_t padded = padded_to_pairs(width);
    for (int64_t c = 0; c < rows * padded; c++) totals[c] = 0;
    for (int64_t l = 0; l < length; l += SPAN) {
        const int64_t count = length - l < SPAN ? length - l : SPAN;
        add_dense(values.numbers + 2 * l * width, weights + l, stride, count, width, rows, totals);
    }
    for (int m = 0; m < rows; m++, out += width)
        for (int64_t c = 0; c < width; c += 32) {
            const __m512 factor = _mm512_set1_ps(1 / sums[m]);
            const __m512 first = _mm512_mul_ps(_mm512_loadu_ps(totals + m * padded + c), factor);
            const __m512 second = _mm512_mul_ps(_mm512_loadu_ps(totals + m * padded + c + 16), factor);
            narrow_pairs(out + c, columns_of(width - c), first, second);
        }
}

static void attend_some(const uint16_t *q, Vectors keys, Vectors values, uint16_t *out, int64_t length, int64_t width,
                        int64_t rows, float *room) {
    switch (rows) {
    case 1: attend_dense(q, keys, values, out, length, width, 1, room); break;
    case 2: attend_dense(q, keys, values, out, length, width, 2, room); break;
    case 3: attend_dense(q, keys, values, out, length, width, 3, room); break;
    default: attend_dense(q, keys, values, out, length, width, 4, room);
    }
}

/* out [groups * per, width]: queries of the same shape over keys and values, `kv`; width a multiple of 16, and of int8
   as attend_quantized wants it. Returns 1 where memory ran out. */
int attend_one(const uint16_t *q, const Vectors *kv, uint16_t *out, int64_t groups, int64_t per, int64_t length,
               int64_t width, int64_t threads) {
    const int quantized = kv->scales != NULL;
    const int64_t size = BLOCK * (length + 16 + 2 * width), parts = (per + BLOCK - 1) / BLOCK;
    float *room = quantized ? NULL : malloc(4 * size * groups * parts);
    if (!room && !quantized) return 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (2 * groups * per * length * width > SMALL)
    for (int64_t i = 0; i < groups * parts; i++) {
        const int64_t g = i / parts, first = i % parts * BLOCK, at = (g * per + first) * width;
        const int64_t rows = per - first < BLOCK ? per - first : BLOCK;
        const Vectors keys = group_of(kv[0], g), values = group_of(kv[1], g);
        if (quantized) attend_quantized(q + at, keys, values, out + at, length, width, rows);
        else attend_some(q + at, keys, values, out + at, length, width, rows, room + i * size);
    }
    free(room);
    return 0;
}
