/* Products of few rows with weights in 4, 8 and 16 bits. They are bound by how fast the weights are read: once, in the
   order in which they lie, in one stream. */

#include "common.h"

#define WIDE 8192 /* columns above which a row of weights and one of x do not fit in the first cache together */
#define MANY 8    /* rows of x that share what was read and taken apart, in 4 bits */
#define CHUNK 128 /* rows of x that stay in the second cache while all weights pass by */

/* Products with weights in 8 and 4 bits.

   A row of x becomes, in groups of columns, whole numbers of 16 bits and a scale, each number as two bytes
   (256 * high + low). The instruction that multiplies bytes then takes them and the weights as they are: all sums
   within a group are exact. What is lost is at most 1/65024 of a group's largest value, where bfloat16 itself keeps
   1/512 of each value.

   Weights lie in tiles of 16 rows: a line of 64 bytes holds for each of them 4 columns (8 bits), or 8 columns, the
   first 4 in the lower halves (4 bits). */

void to_numbers(const uint16_t *x, int64_t cols, int64_t group, Numbers to, int64_t row) {
    for (int64_t g = 0; g < cols / group; g++) {
        int64_t at = row * cols + g * group;
        __m512 most = _mm512_setzero_ps();
        __mmask16 bad = 0;
        for (int64_t k = 0; k < group; k += 16) {
            __m512 value = widened(x + at + k);
            bad |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
            most = _mm512_max_ps(most, _mm512_abs_ps(value));
        }
        /* What is no number stays none, by its scale; what is too small to divide by counts as zero. */
        const float largest = _mm512_reduce_max_ps(most), scale = bad ? NAN : largest / 32512;
        const __m512 factor = _mm512_set1_ps(largest > 1e-30f && largest < INFINITY ? 32512 / largest : 0);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t k = 0; k < group; k += 16) {
            __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps(widened(x + at + k), factor));
            __m512i high = _mm512_srai_epi32(_mm512_add_epi32(number, _mm512_set1_epi32(128)), 8);
            sum = _mm512_add_epi32(sum, number);
            _mm_storeu_si128((void *)(to.bytes + 2 * at + k), _mm512_cvtepi32_epi8(high));
            _mm_storeu_si128((void *)(to.bytes + 2 * at + group + k),
                             _mm512_cvtepi32_epi8(_mm512_sub_epi32(number, _mm512_slli_epi32(high, 8))));
        }
        to.scales[row * (cols / group) + g] = scale;
        to.sums[row * (cols / group) + g] = (float)_mm512_reduce_add_epi32(sum);
    }
}

/* Of several weights side by side the one that holds row `n` of all; `n` becomes its own. */
static inline const Weights *holder(const Weights *w, int64_t *n) {
    while (*n >= w->out) *n -= w++->out;
    return w;
}

/* Tile `n` of weights times `rows` <= MANY rows of x, beginning with `first`; `out` is where the first row of x has its
   result. */
INLINE void tile(const Weights *w, const Product *by, Numbers x, int64_t n, int64_t first, int rows, int bits,
                 uint16_t *out) {
    const int64_t cols = by->cols, group = by->group, groups = cols / group, step = bits == 4 ? 8 : 4;
    const uint8_t *line = w->codes + n * TILE * cols * bits / 8;
    const __m512i lower = _mm512_set1_epi8(15), signs = _mm512_set1_epi8((char)128);
    const __m512 middle = _mm512_set1_ps(bits == 4 ? 8 : 128);
    /* With few rows the upper halves have sums of their own, sixteen times what they stand for: an instruction need not
       wait for the one before. With many it has no need to wait, and there are no registers for more sums. */
    const int apart = bits == 4 && rows <= BLOCK / 2;
    __m512 total[MANY];
    for (int m = 0; m < rows; m++) total[m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m512i high[MANY], low[MANY], high2[BLOCK / 2], low2[BLOCK / 2];
        for (int m = 0; m < rows; m++) high[m] = low[m] = _mm512_setzero_si512();
        for (int m = 0; apart && m < rows; m++) high2[m] = low2[m] = _mm512_setzero_si512();
        const int8_t *high_x = x.bytes + 2 * (first * cols + g * group), *low_x = high_x + group;
        /* What weights pass by pushes the next group of x out of the first cache. */
        for (int64_t k = 0; rows == 1 && k < 2 * group; k += 64)
            _mm_prefetch((const char *)low_x + group + k, _MM_HINT_T0);
        for (int64_t k = 0; k < group; k += step, line += 64) {
            __m512i bytes = _mm512_loadu_si512(line), second = bytes;
            _mm_prefetch((const char *)line + (bits == 4 ? ahead_of_4 : ahead), _MM_HINT_T0);
            if (bits == 4) {
                if (apart) second = _mm512_andnot_si512(lower, bytes);
                else second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), lower);
                bytes = _mm512_and_si512(bytes, lower);
            } else {
                bytes = _mm512_xor_si512(bytes, signs);
            }
            for (int m = 0; m < rows; m++) {
                const int64_t at = 2 * m * cols + k;
                high[m] = _mm512_dpbusd_epi32(high[m], bytes, four(high_x + at));
                low[m] = _mm512_dpbusd_epi32(low[m], bytes, four(low_x + at));
                if (apart) {
                    high2[m] = _mm512_dpbusd_epi32(high2[m], second, four(high_x + at + 4));
                    low2[m] = _mm512_dpbusd_epi32(low2[m], second, four(low_x + at + 4));
                } else if (bits == 4) {
                    high[m] = _mm512_dpbusd_epi32(high[m], second, four(high_x + at + 4));
                    low[m] = _mm512_dpbusd_epi32(low[m], second, four(low_x + at + 4));
                }
            }
        }
        const int64_t place = (n * groups + g) * TILE;
        const __m512 zero = w->zeros ? widened(w->zeros + place) : middle;
        const __m512 scale = by->grouped ? widened(w->scales + place) : _mm512_set1_ps(1);
        for (int m = 0; m < rows; m++) {
            const int64_t at = (first + m) * groups + g;
            if (apart) {
                high[m] = _mm512_add_epi32(high[m], _mm512_srai_epi32(high2[m], 4));
                low[m] = _mm512_add_epi32(low[m], _mm512_srai_epi32(low2[m], 4));
            }
            __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[m], 8), low[m]));
            sum = _mm512_fnmadd_ps(zero, _mm512_set1_ps(x.sums[at]), sum);
            total[m] = _mm512_fmadd_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[at])), total[m]);
        }
    }
    for (int m = 0; m < rows; m++) {
        __m512 y = by->grouped ? total[m] : _mm512_mul_ps(total[m], widened(w->scales + n * TILE));
        narrow(out + (first + m) * by->out, y);
    }
}

#define CASES(bits)                                                    \
    switch (count) {                                                   \
    case 1: tile(w, by, numbers, own / TILE, m, 1, bits, here); break; \
    case 2: tile(w, by, numbers, own / TILE, m, 2, bits, here); break; \
    case 3: tile(w, by, numbers, own / TILE, m, 3, bits, here); break; \
    case 4: tile(w, by, numbers, own / TILE, m, 4, bits, here); break; \
    default: tile(w, by, numbers, own / TILE, m, MANY, bits, here);    \
    }

static int quantized_product(const uint16_t *x, uint16_t *out, int64_t rows, const Product *by, int64_t threads) {
    const int64_t size = rows * by->cols, groups = rows * (by->cols / by->group), most = by->bits == 4 ? MANY : BLOCK;
    char *room = malloc(2 * size + 8 * groups);
    if (!room) return 1;
    float *floats = (float *)room;
    const Numbers numbers = {(int8_t *)(floats + 2 * groups), floats, floats + groups};
#pragma omp parallel num_threads(threads) if (size * by->out > SMALL)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) to_numbers(x, by->cols, by->group, numbers, row);
        for (int64_t start = 0; start < rows; start += CHUNK) {
            const int64_t end = start + CHUNK < rows ? start + CHUNK : rows;
#pragma omp for schedule(static) nowait
            for (int64_t n = 0; n < by->out; n += TILE) {
                int64_t own = n;
                const Weights *w = holder(by->weights, &own);
                uint16_t *here = out + n;
                for (int64_t m = start, count; m < end; m += count) {
                    count = end - m >= most ? most : end - m < BLOCK ? end - m : BLOCK;
                    if (by->bits == 4) { CASES(4) } else { CASES(8) }
                }
            }
        }
    }
    free(room);
    return 0;
}

/* Products with weights in bfloat16. */

/* `lines` rows of weights times `rows` <= BLOCK rows of x. These are widened anew for each row of weights: in bfloat16
   they stay in the first cache where they would not as floats, and the weights pass by in one stream. Where x and a row
   of weights fill the first cache together, and for several rows of x, two rows pass by at once, so that x is read half
   as often. With `turns` 2 there are two sums in turn: none needs to wait for the one before. */
INLINE void dense_rows(const uint16_t *weight, const uint16_t *x, int64_t cols, int rows, int lines, int turns,
                       int pairs, float *sums) {
    __m512 dots[2][2][BLOCK];
    for (int i = 0; i < 4; i++)
        for (int m = 0; m < rows; m++) dots[i / 2][i % 2][m] = _mm512_setzero_ps();
    for (int64_t k = 0; k < cols; k += 32 * turns)
        for (int turn = 0; turn < turns && k + 32 * turn < cols; turn++) {
            const int64_t at = k + 32 * turn;
            __m512i line[2];
            for (int i = 0; i < lines; i++) {
                const char *near = (const char *)(weight + i * cols + at);
                line[i] = _mm512_loadu_si512(near);
                if (lines > 1) _mm_prefetch(near + 2048, _MM_HINT_T1);
                else _mm_prefetch(near + ahead, _MM_HINT_T0);
            }
            for (int m = 0; m < rows; m++) {
                const __m512i with = _mm512_loadu_si512(x + m * cols + at);
                for (int i = 0; i < lines; i++)
                    dots[i][turn][m] = add_products(dots[i][turn][m], line[i], with, pairs);
            }
        }
    for (int m = 0; m < rows; m++)
        for (int i = 0; i < lines; i++) {
            const __m512 sum = turns > 1 ? _mm512_add_ps(dots[i][0][m], dots[i][1][m]) : dots[i][0][m];
            sums[m * TILE + i] = _mm512_reduce_add_ps(sum);
        }
}

#define DENSE(rows, lines, turns)                                        \
    by_pairs ? dense_rows(row, x, cols, rows, lines, turns, 1, sums + i) \
             : dense_rows(row, x, cols, rows, lines, turns, 0, sums + i)
#define ROWS(turns)                    \
    switch (rows) {                    \
    case 2: DENSE(2, 2, turns); break; \
    case 3: DENSE(3, 2, turns); break; \
    default: DENSE(4, 2, turns);       \
    }

static void dense_product(const uint16_t *x, uint16_t *out, int64_t rows, const Product *by, int64_t threads) {
    /* The order of the sums is the same for any number of rows: each is rounded as it is alone. */
    const int64_t cols = by->cols, wide = cols > WIDE, lines = rows == 1 && !wide ? 1 : 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * cols * by->out > SMALL)
    for (int64_t n = 0; n < by->out; n += TILE) {
        float sums[BLOCK * TILE];
        int64_t own = n;
        const uint16_t *weight = (const uint16_t *)holder(by->weights, &own)->codes;
        for (int64_t i = 0; i < TILE; i += lines) {
            const uint16_t *row = weight + (own + i) * cols;
            if (rows == 1 && wide) DENSE(1, 2, 1);
            else if (rows == 1) DENSE(1, 1, 2);
            else if (wide) ROWS(1)
            else ROWS(2)
        }
        for (int64_t m = 0; m < rows; m++) narrow(out + m * by->out + n, _mm512_loadu_ps(sums + m * TILE));
    }
}

/* out [rows, by->out] = x [rows, by->cols] times weights, all bfloat16 but the codes; at 16 bits at most BLOCK rows.
   Returns 0, or 1 where memory ran out. */
int product(const uint16_t *x, uint16_t *out, int64_t rows, const Product *by, int64_t threads) {
    if (by->bits < 16) return quantized_product(x, out, rows, by, threads);
    dense_product(x, out, rows, by, threads);
    return 0;
}
