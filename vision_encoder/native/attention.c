/* Attention of many positions in bfloat16: flash attention (arXiv 2205.14135) by products of pairs, AVX512-BF16. */

#include "vectors.h"

#define SIDE 5                 /* rows, and tiles of columns, whose sums are in registers: 25 of 32 */
#define ROWS (8 * SIDE)        /* queries that go over the keys together */
#define KEYS (2 * SIDE * TILE) /* keys whose scores are held at once, and which stay in the second cache */
#define MAX_WIDTH 256
#define ALIGNED __attribute__((aligned(64)))

/* Queries, keys or values, [batch, heads, positions, width]; strides in numbers. */
typedef struct {
    const uint16_t *numbers;
    int64_t batch, head, row;
} Heads;

/* Keys and values of one head, in the order in which they are read: keys [length / 16, width / 2, 16, 2], values
   [length / KEYS, width / 16, KEYS / 2, 16, 2]. */
typedef struct {
    uint16_t *keys, *values;
} Packed;

static void pack_keys(
    const uint16_t *keys, int64_t stride, int64_t count, int64_t length, int64_t width, uint16_t *to) {
    for (int64_t l = 0; l < length; l += TILE)
        for (int64_t c = 0; c < width; c += 2 * TILE) {
            __m512i lines[TILE];
            const __mmask32 there = width - c < 2 * TILE ? 0xffff : 0xffffffff;
            for (int i = 0; i < TILE; i++)
                lines[i] = _mm512_maskz_loadu_epi16(l + i < count ? there : 0, keys + (l + i) * stride + c);
            transpose(lines);
            for (int i = 0; i < TILE && c + 2 * i < width; i++)
                _mm512_store_si512(to + l * width + TILE * (c + 2 * i), lines[i]);
        }
}

static void pack_values(
    const uint16_t *values, int64_t stride, int64_t count, int64_t length, int64_t width, uint16_t *to) {
    int16_t order[2 * TILE];
    for (int i = 0; i < TILE; i++) order[2 * i] = i, order[2 * i + 1] = TILE + i;
    const __m512i alternating = _mm512_loadu_si512(order);
    for (int64_t l = 0; l < length; l += 2)
        for (int64_t c = 0; c < width; c += TILE) {
            const uint16_t *near = values + l * stride + c;
            const __m256i one = _mm256_maskz_loadu_epi16(l < count ? 0xffff : 0, near);
            const __m256i two = _mm256_maskz_loadu_epi16(l + 1 < count ? 0xffff : 0, near + stride);
            const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(one), two, 1);
            uint16_t *at = to + l / KEYS * KEYS * width + c * KEYS + l % KEYS * TILE;
            _mm512_store_si512(at, _mm512_permutexvar_epi16(alternating, both));
        }
}

/* Make of y [SIDE, 16 * tiles] y times the `factors` of its rows, or nothing where there are none, plus x
   [SIDE, 2 * pairs] times `by` [tiles, pairs, 16, 2]. */
INLINE void add_product(const uint16_t *x, int64_t x_stride, const uint16_t *by, int64_t by_stride, int64_t pairs,
                        const float *factors, float *y, int64_t y_stride, int tiles) {
    __m512 sums[SIDE][SIDE];
#pragma GCC unroll 5
    for (int m = 0; m < SIDE; m++)
#pragma GCC unroll 5
        for (int i = 0; i < tiles; i++) {
            if (!factors) sums[m][i] = _mm512_setzero_ps();
            else sums[m][i] = _mm512_mul_ps(_mm512_set1_ps(factors[m]), _mm512_loadu_ps(y + m * y_stride + TILE * i));
        }
    for (int64_t p = 0; p < pairs; p++) {
        __m512bh near[SIDE];
#pragma GCC unroll 5
        for (int i = 0; i < tiles; i++) near[i] = (__m512bh)_mm512_load_si512(by + i * by_stride + 2 * TILE * p);
#pragma GCC unroll 5
        for (int m = 0; m < SIDE; m++) {
            int32_t pair;
            memcpy(&pair, x + m * x_stride + 2 * p, 4);
#pragma GCC unroll 5
            for (int i = 0; i < tiles; i++)
                sums[m][i] = _mm512_dpbf16_ps(sums[m][i], near[i], (__m512bh)_mm512_set1_epi32(pair));
        }
    }
#pragma GCC unroll 5
    for (int m = 0; m < SIDE; m++)
#pragma GCC unroll 5
        for (int i = 0; i < tiles; i++) _mm512_storeu_ps(y + m * y_stride + TILE * i, sums[m][i]);
}

/* scores [rows, KEYS] of queries [rows, width]. */
static void score(const uint16_t *queries, const uint16_t *keys, int64_t rows, int64_t width, float *scores) {
    for (int64_t l = 0; l < KEYS; l += SIDE * TILE)
        for (int64_t m = 0; m < rows; m += SIDE)
            add_product(queries + m * width, width, keys + l * width, TILE * width, width / 2, NULL,
                        scores + m * KEYS + l, KEYS, SIDE);
}

#define ADD_TILES(tiles)                                                                                       \
    add_product(weights + 2 * m * KEYS, 2 * KEYS, values + i * TILE * KEYS, TILE * KEYS, KEYS / 2, factors + m, \
                totals + m * width + i * TILE, width, tiles)

/* Make of totals [rows, width] totals times `factors` [rows] plus `weights`, in rows 2 * KEYS apart, times values. */
static void add_values(const uint16_t *weights, const uint16_t *values, const float *factors, int64_t rows,
                       int64_t width, float *totals) {
    const int64_t tiles = width / TILE, passes = (tiles + SIDE - 1) / SIDE, most = (tiles + passes - 1) / passes;
    for (int64_t i = 0; i < tiles; i += most)
        for (int64_t m = 0; m < rows; m += SIDE) switch (tiles - i < most ? tiles - i : most) {
            case 1: ADD_TILES(1); break;
            case 2: ADD_TILES(2); break;
            case 3: ADD_TILES(3); break;
            case 4: ADD_TILES(4); break;
            default: ADD_TILES(5);
            }
}

/* 2^x for x that are not above 0, to 3e-6 of it. NaN stays NaN: of two numbers of which one is none, the maximum is the
   second. */
static inline __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200), x);
    const __m512 rest = _mm512_reduce_ps(x, 1);
    const float factors[] = {5.2011464e-2f, 2.4144275e-1f, 6.9300383e-1f, 1.0000026f};
    __m512 series = _mm512_set1_ps(1.3534167e-2f);
    for (int i = 0; i < 4; i++) series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(series, x);
}

/* What a query has seen: its highest score as a power of two, the sum of the weights below it, and by what the last
   keys lowered those before them. */
typedef struct {
    float highest[ROWS], sums[ROWS], factors[ROWS];
} Seen;

/* Turn a query's scores of KEYS keys, of which it sees the first `visible`, into their weights, rounded, in the first
   half of its row. The sum is of what was rounded, so that the weights add up to one. */
static inline void weigh(float *row, const float *bias, int64_t visible, float factor, Seen *seen, int64_t m) {
    const __m512 scale = _mm512_set1_ps(factor), ones = _mm512_castsi512_ps(_mm512_set1_epi32(0x3f803f80));
    for (int64_t l = visible > 0 ? visible : 0; l < KEYS; l++) row[l] = -INFINITY;
    __m512 highest = _mm512_set1_ps(seen->highest[m]), others = highest, sums = _mm512_setzero_ps();
    for (int64_t l = 0; l < KEYS; l += 2 * TILE) {
        const __m512 one = _mm512_fmadd_ps(_mm512_loadu_ps(row + l), scale, _mm512_loadu_ps(bias + l));
        const __m512 two = _mm512_fmadd_ps(_mm512_loadu_ps(row + l + TILE), scale, _mm512_loadu_ps(bias + l + TILE));
        highest = _mm512_max_ps(one, highest);
        others = _mm512_max_ps(two, others);
        _mm512_storeu_ps(row + l, one);
        _mm512_storeu_ps(row + l + TILE, two);
    }
    const float last = seen->highest[m], now = _mm512_reduce_max_ps(_mm512_max_ps(highest, others));
    /* Where nothing was seen yet, two infinities are not to be taken from each other. */
    const float shift = now == -INFINITY ? 0 : now;
    highest = _mm512_set1_ps(shift);
    for (int64_t l = 0; l < KEYS; l += 2 * TILE) {
        const __m512 one = power_of_two(_mm512_sub_ps(_mm512_loadu_ps(row + l), highest));
        const __m512 two = power_of_two(_mm512_sub_ps(_mm512_loadu_ps(row + l + TILE), highest));
        const __m512bh weights = _mm512_cvtne2ps_pbh(two, one);
        sums = _mm512_dpbf16_ps(sums, weights, (__m512bh)ones);
        _mm512_storeu_si512((uint16_t *)row + l, (__m512i)weights);
    }
    seen->highest[m] = now;
    seen->factors[m] = exp2f(last - shift);
    seen->sums[m] = seen->sums[m] * seen->factors[m] + _mm512_reduce_add_ps(sums);
}

/* out, in rows `out_stride` apart: what `count` <= ROWS queries, in rows `stride` apart, see of the keys: the first of
   them the first `visible`, each after it one more. */
static void attend_rows(const uint16_t *q, int64_t stride, int64_t count, Packed kv, const float *bias, int64_t length,
                        int64_t visible, int64_t width, uint16_t *out, int64_t out_stride) {
    uint16_t queries[ROWS * MAX_WIDTH] ALIGNED;
    float totals[ROWS * MAX_WIDTH] ALIGNED, scores[ROWS * KEYS] ALIGNED;
    Seen seen;
    const int64_t rows = (count + SIDE - 1) / SIDE * SIDE, most = visible + count - 1;
    const float factor = 1.44269504f / sqrtf(width);
    for (int64_t m = 0; m < rows; m++) {
        if (m < count) memcpy(queries + m * width, q + m * stride, 2 * width);
        else memset(queries + m * width, 0, 2 * width);
        seen.highest[m] = -INFINITY;
        seen.sums[m] = 0;
    }
    memset(totals, 0, 4 * rows * width);
    for (int64_t l = 0; l < (most < length ? most : length); l += KEYS) {
        score(queries, kv.keys + l * width, rows, width, scores);
        for (int64_t m = 0; m < rows; m++) {
            const int64_t sees = visible + m < length ? visible + m : length;
            weigh(scores + m * KEYS, bias + l, sees - l, factor, &seen, m);
        }
        add_values((uint16_t *)scores, kv.values + l * width, seen.factors, rows, width, totals);
    }
    for (int64_t m = 0; m < count; m++)
        for (int64_t c = 0; c < width; c += TILE) {
            const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(totals + m * width + c), _mm512_set1_ps(1 / seen.sums[m]));
            _mm256_storeu_si256((void *)(out + m * out_stride + c), (__m256i)_mm512_cvtneps_pbh(y));
        }
}

/* out [batch, positions, heads, width] of queries [batch, groups * per, positions, width] over keys and values
   [batch, groups, length, width]; width a multiple of 16 up to MAX_WIDTH. `bias` [length], or NULL, is added to the
   logits of each key. The first query sees the first `visible` keys, each after it one more. Keys and values are packed
   for as many heads at a time as there are threads. Returns 1 where memory ran out. */
int attend_many(const Heads *qkv, const float *bias, uint16_t *out, int64_t batch, int64_t groups, int64_t per,
                int64_t positions, int64_t length, int64_t visible, int64_t width, int64_t threads) {
    const int64_t padded = (length + KEYS - 1) / KEYS * KEYS, size = padded * width, heads = groups * per;
    const int64_t blocks = (positions + ROWS - 1) / ROWS;
    const int64_t together = batch * groups < threads ? batch * groups : threads;
    float *room = aligned_alloc(64, 4 * (together * size + padded));
    if (!room) return 1;
    float *powers = room + together * size;
    for (int64_t l = 0; l < padded; l++) powers[l] = bias && l < length ? 1.44269504f * bias[l] : 0;
#pragma omp parallel num_threads(threads)
    for (int64_t start = 0; start < batch * groups; start += together) {
        const int64_t now = batch * groups - start < together ? batch * groups - start : together;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < 2 * now; i++) {
            const Heads x = qkv[1 + i % 2];
            const int64_t b = (start + i / 2) / groups, g = (start + i / 2) % groups;
            const uint16_t *from = x.numbers + b * x.batch + g * x.head;
            uint16_t *to = (uint16_t *)room + i * size;
            if (i % 2) pack_values(from, x.row, length, padded, width, to);
            else pack_keys(from, x.row, length, padded, width, to);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < now * per * blocks; i++) {
            const int64_t part = i / blocks / per, b = (start + part) / groups, first = i % blocks * ROWS;
            const int64_t h = (start + part) % groups * per + i / blocks % per;
            const uint16_t *q = qkv->numbers + b * qkv->batch + h * qkv->head + first * qkv->row;
            const Packed kv = {(uint16_t *)room + 2 * part * size, (uint16_t *)room + (2 * part + 1) * size};
            attend_rows(q, qkv->row, positions - first < ROWS ? positions - first : ROWS, kv, powers, length,
                        visible + first, width, out + ((b * positions + first) * heads + h) * width, heads * width);
        }
    }
    free(room);
    return 0;
}
