/* What torch does slowly on the CPU, for processors with AVX-512 VNNI. Built and loaded by native.py.

   Products of few rows are bound by how fast the weights are read: they are read once, in the order in which they lie,
   well ahead. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define TILE 16   /* rows of weights, the lanes of a register */
#define BLOCK 4   /* rows of x that share what was read of the weights */
#define CHUNK 128 /* rows of x that stay in the second cache while all weights pass by */
#define AHEAD 8192
#define SMALL (1 << 18) /* multiplications that one thread has done before another is awake */

/* Products with weights in 8 and 4 bits.

   A row of x becomes, in groups of columns, whole numbers of 16 bits and a scale, each number as two bytes
   (256 * high + low). The instruction that multiplies bytes then takes them and the weights as they are: all sums
   within a group are exact. What is lost is at most 1/65024 of a group's largest value, where bfloat16 itself keeps
   1/512 of each value.

   Weights lie in tiles of 16 rows: a line of 64 bytes holds for each of them 4 columns (8 bits), or 8 columns, the
   first 4 in the lower halves (4 bits). */

typedef struct {
    const uint8_t *codes;    /* [out / 16, lines, 64]; where weights are bfloat16 these, [out, cols] */
    const uint16_t *scales;  /* bfloat16: [out / 16, groups, 16], or [out] where rows are not grouped */
    const uint16_t *zeros;   /* bfloat16 [out / 16, groups, 16]: the code that stands for 0; NULL: the middle one */
    int64_t out;
} Weights;

typedef struct {
    int64_t cols, group, out, grouped; /* out: of all weights; grouped: whether each group has a scale, or a row one */
} Shape;

typedef struct {
    int8_t *high, *low;   /* [rows, cols] */
    float *scales, *sums; /* [rows, groups]; the sums are of the whole numbers */
} Numbers;

static inline __m512 widened(const uint16_t *x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)x)), 16));
}

/* Store as bfloat16, to the nearest, ties to even; NaN stays NaN. */
static inline void narrow(uint16_t *to, __m512 y) {
    __m512i whole = _mm512_castps_si512(y);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(whole, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(whole, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256((void *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

static void to_numbers(const uint16_t *x, int64_t cols, int64_t group, Numbers to, int64_t row) {
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
            _mm_storeu_si128((void *)(to.high + at + k), _mm512_cvtepi32_epi8(high));
            _mm_storeu_si128((void *)(to.low + at + k),
                             _mm512_cvtepi32_epi8(_mm512_sub_epi32(number, _mm512_slli_epi32(high, 8))));
        }
        to.scales[row * (cols / group) + g] = scale;
        to.sums[row * (cols / group) + g] = (float)_mm512_reduce_add_epi32(sum);
    }
}

static inline __m512i four(const int8_t *x) {
    int32_t bytes;
    memcpy(&bytes, x, 4);
    return _mm512_set1_epi32(bytes);
}

/* Of several weights with one x, whose results stand side by side, the one that holds row `n` of all; `n` becomes its
   own. */
static inline const Weights *holder(const Weights *w, int64_t *n) {
    while (*n >= w->out) *n -= w++->out;
    return w;
}

/* Tile `n` of weights times `rows` <= BLOCK rows of x, beginning with `first`; `out` is where the first row of x has
   its result. */
static inline __attribute__((always_inline)) void tile(
    const Weights *w, Shape shape, Numbers x, int64_t n, int64_t first, int rows, int bits, uint16_t *out) {
    const int64_t cols = shape.cols, groups = cols / shape.group, step = bits == 4 ? 8 : 4;
    const uint8_t *line = w->codes + n * TILE * cols * bits / 8;
    const __m512i halves = _mm512_set1_epi8(15), signs = _mm512_set1_epi8((char)128);
    const __m512 middle = _mm512_set1_ps(bits == 4 ? 8 : 128);
    __m512 total[BLOCK];
    for (int m = 0; m < rows; m++) total[m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m512i high[BLOCK], low[BLOCK];
        for (int m = 0; m < rows; m++) high[m] = low[m] = _mm512_setzero_si512();
        for (int64_t k = g * shape.group; k < (g + 1) * shape.group; k += step, line += 64) {
            __m512i bytes = _mm512_loadu_si512(line), second = bytes;
            _mm_prefetch((const char *)line + AHEAD, _MM_HINT_T0);
            if (bits == 4) {
                second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), halves);
                bytes = _mm512_and_si512(bytes, halves);
            } else {
                bytes = _mm512_xor_si512(bytes, signs);
            }
            for (int m = 0; m < rows; m++) {
                const int64_t at = (first + m) * cols + k;
                high[m] = _mm512_dpbusd_epi32(high[m], bytes, four(x.high + at));
                low[m] = _mm512_dpbusd_epi32(low[m], bytes, four(x.low + at));
                if (bits == 4) {
                    high[m] = _mm512_dpbusd_epi32(high[m], second, four(x.high + at + 4));
                    low[m] = _mm512_dpbusd_epi32(low[m], second, four(x.low + at + 4));
                }
            }
        }
        const int64_t place = (n * groups + g) * TILE;
        const __m512 zero = w->zeros ? widened(w->zeros + place) : middle;
        const __m512 scale = shape.grouped ? widened(w->scales + place) : _mm512_set1_ps(1);
        for (int m = 0; m < rows; m++) {
            const int64_t at = (first + m) * groups + g;
            __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[m], 8), low[m]));
            sum = _mm512_fnmadd_ps(zero, _mm512_set1_ps(x.sums[at]), sum);
            total[m] = _mm512_fmadd_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[at])), total[m]);
        }
    }
    for (int m = 0; m < rows; m++) {
        __m512 y = shape.grouped ? total[m] : _mm512_mul_ps(total[m], widened(w->scales + n * TILE));
        narrow(out + (first + m) * shape.out, y);
    }
}

/* out [rows, cols] = x / its root mean square, times weight; cols a multiple of 16. */
void rms_norm(const uint16_t *x, const uint16_t *weight, uint16_t *out, int64_t rows, int64_t cols, double eps) {
    for (int64_t m = 0; m < rows; m++, x += cols, out += cols) {
        __m512 squares = _mm512_setzero_ps();
        for (int64_t k = 0; k < cols; k += 16) squares = _mm512_fmadd_ps(widened(x + k), widened(x + k), squares);
        const __m512 factor = _mm512_set1_ps((float)(1 / sqrt(_mm512_reduce_add_ps(squares) / cols + eps)));
        for (int64_t k = 0; k < cols; k += 16)
            narrow(out + k, _mm512_mul_ps(_mm512_mul_ps(widened(x + k), factor), widened(weight + k)));
    }
}

/* Read every byte once, 128 at a time: what the memory can give. */
int64_t read_all(const char *start, int64_t size, int64_t threads) {
    int64_t found = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(^ : found)
    for (int64_t part = 0; part < size / 65536; part++) {
        __m512i first = _mm512_setzero_si512(), second = first;
        for (const char *at = start + part * 65536; at < start + (part + 1) * 65536; at += 128) {
            first = _mm512_xor_si512(first, _mm512_loadu_si512(at));
            second = _mm512_xor_si512(second, _mm512_loadu_si512(at + 64));
        }
        found ^= _mm512_reduce_add_epi64(_mm512_xor_si512(first, second));
    }
    return found;
}

/* Whether this processor has the instructions. */
int usable(void) { return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni"); }

/* Ask for large pages, with which memory is read faster. A wish: it may be ignored. */
void large_pages(char *start, int64_t size) {
    char *aligned = (char *)(((intptr_t)start + 4095) & ~(intptr_t)4095);
    if (aligned < start + size) madvise(aligned, start + size - aligned, MADV_HUGEPAGE);
}

#define CASES(bits)                                                       \
    switch (count) {                                                      \
    case 1: tile(w, shape, numbers, own / TILE, m, 1, bits, here); break; \
    case 2: tile(w, shape, numbers, own / TILE, m, 2, bits, here); break; \
    case 3: tile(w, shape, numbers, own / TILE, m, 3, bits, here); break; \
    default: tile(w, shape, numbers, own / TILE, m, 4, bits, here);       \
    }

/* out [rows, num_out] = x [rows, cols] times several weights, side by side, all bfloat16. Returns 0, or 1 where memory
   ran out. */
int quantized_product(const uint16_t *x, uint16_t *out, int64_t rows, int64_t cols, int64_t num_out, int64_t group,
                      int64_t bits, int64_t grouped, const Weights *weights, int64_t threads) {
    const Shape shape = {cols, group, num_out, grouped};
    const int64_t size = rows * cols, groups = rows * (cols / group);
    char *room = malloc(2 * size + 8 * groups);
    if (!room) return 1;
    float *floats = (float *)room;
    const Numbers numbers = {(int8_t *)(floats + 2 * groups), (int8_t *)(floats + 2 * groups) + size, floats,
                             floats + groups};
#pragma omp parallel num_threads(threads) if (size * num_out > SMALL)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) to_numbers(x, cols, group, numbers, row);
        for (int64_t start = 0; start < rows; start += CHUNK) {
            const int64_t end = start + CHUNK < rows ? start + CHUNK : rows;
#pragma omp for schedule(static) nowait
            for (int64_t n = 0; n < num_out; n += TILE) {
                int64_t own = n;
                const Weights *w = holder(weights, &own);
                uint16_t *here = out + n;
                for (int64_t m = start; m < end; m += BLOCK) {
                    const int64_t count = end - m < BLOCK ? end - m : BLOCK;
                    if (bits == 4) { CASES(4) } else { CASES(8) }
                }
            }
        }
    }
    free(room);
    return 0;
}

/* Products with weights in bfloat16. */

static inline __m512 evens(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

static inline __m512 odds(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

/* One row of weights times `rows` <= BLOCK rows of x, which stand as 16 even and 16 odd columns in turn. */
static inline __attribute__((always_inline)) void dense_row(
    const uint16_t *weight, const float *x, int64_t cols, int rows, float *sums) {
    __m512 first[BLOCK], second[BLOCK];
    for (int m = 0; m < rows; m++) first[m] = second[m] = _mm512_setzero_ps();
    for (int64_t k = 0; k < cols; k += 32) {
        const __m512i pairs = _mm512_loadu_si512(weight + k);
        _mm_prefetch((const char *)(weight + k) + AHEAD, _MM_HINT_T0);
        for (int m = 0; m < rows; m++) {
            first[m] = _mm512_fmadd_ps(evens(pairs), _mm512_loadu_ps(x + m * cols + k), first[m]);
            second[m] = _mm512_fmadd_ps(odds(pairs), _mm512_loadu_ps(x + m * cols + k + 16), second[m]);
        }
    }
    for (int m = 0; m < rows; m++) sums[m * TILE] = _mm512_reduce_add_ps(_mm512_add_ps(first[m], second[m]));
}

/* out [rows, num_out] = x [rows, cols] times several weights [.., cols], side by side; rows <= 4. Returns 1 where
   memory ran out. */
int dense_product(const uint16_t *x, uint16_t *out, int64_t rows, int64_t cols, int64_t num_out, const Weights *weights,
                  int64_t threads) {
    float *wide = malloc(4 * rows * cols);
    if (!wide) return 1;
    for (int64_t k = 0; k < rows * cols; k += 32) {
        const __m512i pairs = _mm512_loadu_si512(x + k);
        _mm512_storeu_ps(wide + k, evens(pairs));
        _mm512_storeu_ps(wide + k + 16, odds(pairs));
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * cols * num_out > SMALL)
    for (int64_t n = 0; n < num_out; n += TILE) {
        float sums[BLOCK * TILE];
        int64_t own = n;
        const uint16_t *weight = (const uint16_t *)holder(weights, &own)->codes;
        for (int64_t i = 0; i < TILE; i++) {
            const uint16_t *row = weight + (own + i) * cols;
            switch (rows) {
            case 1: dense_row(row, wide, cols, 1, sums + i); break;
            case 2: dense_row(row, wide, cols, 2, sums + i); break;
            case 3: dense_row(row, wide, cols, 3, sums + i); break;
            default: dense_row(row, wide, cols, 4, sums + i);
            }
        }
        for (int64_t m = 0; m < rows; m++) narrow(out + m * num_out + n, _mm512_loadu_ps(sums + m * TILE));
    }
    free(wide);
    return 0;
}

static inline __m512 exponential(__m512 x) {
    const __m512 powers = _mm512_max_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _mm512_set1_ps(-126));
    const __m512 whole = _mm512_roundscale_ps(powers, 8);
    const __m512 rest = _mm512_mul_ps(_mm512_sub_ps(powers, whole), _mm512_set1_ps(0.69314718f));
    __m512 series = _mm512_set1_ps(1 / 720.0f);
    const float factors[] = {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1, 1};
    for (int i = 0; i < 6; i++) series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(series, whole);
}

/* out [rows, cols] = silu(x's first half) * its second, of x [rows, 2, cols]; cols a multiple of 16. */
void gated(const uint16_t *x, uint16_t *out, int64_t rows, int64_t cols, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > BLOCK)
    for (int64_t m = 0; m < rows; m++)
        for (int64_t k = 0; k < cols; k += 16) {
            const __m512 gate = widened(x + 2 * m * cols + k), up = widened(x + (2 * m + 1) * cols + k);
            const __m512 power = exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate));
            const __m512 below = _mm512_add_ps(power, _mm512_set1_ps(1));
            narrow(out + m * cols + k, _mm512_mul_ps(_mm512_div_ps(gate, below), up));
        }
}

/* Turn the first `turned` of all `heads` of each row of x [rows, heads, width] by its angles; the cosines and sines
   [positions, width] repeat after `positions` rows, and after half a width. Width a multiple of 32. */
void rotate(uint16_t *x, const float *cosines, const float *sines, int64_t rows, int64_t positions, int64_t heads,
            int64_t turned, int64_t width, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > BLOCK)
    for (int64_t m = 0; m < rows; m++)
        for (int64_t h = 0; h < turned; h++)
            for (int64_t k = 0; k < width / 2; k += 16) {
                uint16_t *first = x + (m * heads + h) * width + k, *second = first + width / 2;
                const __m512 a = widened(first), b = widened(second);
                const __m512 cosine = _mm512_loadu_ps(cosines + m % positions * width + k);
                const __m512 sine = _mm512_loadu_ps(sines + m % positions * width + k);
                narrow(first, _mm512_fmsub_ps(a, cosine, _mm512_mul_ps(b, sine)));
                narrow(second, _mm512_fmadd_ps(b, cosine, _mm512_mul_ps(a, sine)));
            }
}

/* Attention of one position. */

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

/* `rows` <= BLOCK query heads [rows, width] over keys and values [length, width]; room for BLOCK times
   [length + 16 + width]. */
static inline __attribute__((always_inline)) void attend_heads(
    const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out, int64_t length, int64_t width, int rows,
    float *weights) {
    const int64_t stride = (length + 15) / 16 * 16;
    const __m128 factor = _mm_set1_ps(1 / sqrtf(width));
    float sums[BLOCK], *queries = weights + BLOCK * stride;
    for (int64_t c = 0; c < rows * width; c += 16) _mm512_storeu_ps(queries + c, widened(q + c));
    for (int64_t l = 0; l < length; l++) {
        __m512 dots[BLOCK];
        for (int m = 0; m < BLOCK; m++) dots[m] = _mm512_setzero_ps();
        for (int64_t c = 0; c < width; c += 16) {
            const __m512 key = widened(k + l * width + c);
            _mm_prefetch((const char *)(k + l * width + c) + AHEAD / 4, _MM_HINT_T0);
            for (int m = 0; m < rows; m++)
                dots[m] = _mm512_fmadd_ps(key, _mm512_loadu_ps(queries + m * width + c), dots[m]);
        }
        _mm_storeu_ps(sums, _mm_mul_ps(sums_of(dots), factor));
        for (int m = 0; m < rows; m++) weights[m * stride + l] = sums[m];
    }
    for (int m = 0; m < rows; m++) {
        float *row = weights + m * stride;
        for (int64_t l = length; l < stride; l++) row[l] = -INFINITY;
        __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (int64_t l = 0; l < length; l += 16) most = _mm512_max_ps(_mm512_loadu_ps(row + l), most);
        most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        for (int64_t l = 0; l < length; l += 16) {
            const __mmask16 real = length - l < 16 ? (1 << (length - l)) - 1 : 0xffff;
            const __m512 weight = _mm512_maskz_mov_ps(real, exponential(_mm512_sub_ps(_mm512_loadu_ps(row + l), most)));
            sum = _mm512_add_ps(sum, weight);
            _mm512_storeu_ps(row + l, weight);
        }
        sums[m] = 1 / _mm512_reduce_add_ps(sum);
    }
    for (int64_t c = 0; c < width; c += 32) {
        __m512 first[BLOCK], second[BLOCK];
        for (int m = 0; m < rows; m++) first[m] = second[m] = _mm512_setzero_ps();
        for (int64_t l = 0; l < length; l++) {
            const uint16_t *value = v + l * width + c;
            const __m512 left = widened(value), right = widened(value + 16);
            _mm_prefetch((const char *)value + AHEAD / 4, _MM_HINT_T0);
            for (int m = 0; m < rows; m++) {
                const __m512 weight = _mm512_set1_ps(weights[m * stride + l]);
                first[m] = _mm512_fmadd_ps(left, weight, first[m]);
                second[m] = _mm512_fmadd_ps(right, weight, second[m]);
            }
        }
        for (int m = 0; m < rows; m++) {
            narrow(out + m * width + c, _mm512_mul_ps(first[m], _mm512_set1_ps(sums[m])));
            narrow(out + m * width + c + 16, _mm512_mul_ps(second[m], _mm512_set1_ps(sums[m])));
        }
    }
}

/* out [groups * per, width]: queries of the same shape over keys and values [groups, length, width], whose groups lie
   `key_stride` and `value_stride` numbers apart; width a multiple of 32. Returns 1 where memory ran out. */
int attend_one(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out, int64_t groups, int64_t per,
               int64_t length, int64_t width, int64_t key_stride, int64_t value_stride, int64_t threads) {
    const int64_t size = BLOCK * (length + 16 + width), parts = (per + BLOCK - 1) / BLOCK;
    float *room = malloc(4 * size * groups * parts);
    if (!room) return 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (2 * groups * per * length * width > SMALL)
    for (int64_t i = 0; i < groups * parts; i++) {
        const int64_t g = i / parts, first = i % parts * BLOCK, at = (g * per + first) * width;
        const int64_t rows = per - first < BLOCK ? per - first : BLOCK;
        const uint16_t *keys = k + g * key_stride, *values = v + g * value_stride;
        switch (rows) {
        case 1: attend_heads(q + at, keys, values, out + at, length, width, 1, room + i * size); break;
        case 2: attend_heads(q + at, keys, values, out + at, length, width, 2, room + i * size); break;
        case 3: attend_heads(q + at, keys, values, out + at, length, width, 3, room + i * size); break;
        default: attend_heads(q + at, keys, values, out + at, length, width, 4, room + i * size);
        }
    }
    free(room);
    return 0;
}
