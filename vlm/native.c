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
#define SPAN 128  /* values that stay in the first cache while all their columns pass by */
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

/* Turn 16 lines of 16 words: word i of line k becomes word k of line i. */
static inline void transpose(__m512i *x) {
    __m512i y[TILE];
    for (int i = 0; i < TILE; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < TILE; i += 4)
        for (int k = 0; k < 2; k++) {
            x[i + 2 * k] = _mm512_unpacklo_epi64(y[i + k], y[i + 2 + k]);
            x[i + 2 * k + 1] = _mm512_unpackhi_epi64(y[i + k], y[i + 2 + k]);
        }
    /* x[i + k] holds the words k, 4 + k, 8 + k and 12 + k of lines i to i + 3; even and odd ones of these part. */
    for (int k = 0; k < 4; k++) {
        y[k] = _mm512_shuffle_i32x4(x[k], x[k + 4], 0x88);
        y[k + 4] = _mm512_shuffle_i32x4(x[k], x[k + 4], 0xdd);
        y[k + 8] = _mm512_shuffle_i32x4(x[k + 8], x[k + 12], 0x88);
        y[k + 12] = _mm512_shuffle_i32x4(x[k + 8], x[k + 12], 0xdd);
    }
    for (int k = 0; k < 8; k++) {
        x[k] = _mm512_shuffle_i32x4(y[k], y[k + 8], 0x88);
        x[k + 8] = _mm512_shuffle_i32x4(y[k], y[k + 8], 0xdd);
    }
}

/* The products of `rows` <= BLOCK query heads with bfloat16 keys, in rows `stride` apart; `queries` is room for BLOCK
   times width. */
static inline __attribute__((always_inline)) void dense_scores(
    const uint16_t *q, const char *keys, int64_t length, int64_t width, int rows, float *scores, int64_t stride,
    float *queries) {
    for (int64_t c = 0; c < rows * width; c += 16) _mm512_storeu_ps(queries + c, widened(q + c));
    for (int64_t l = 0; l < length; l += BLOCK) {
        __m512 dots[BLOCK][BLOCK];
        const uint16_t *near[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            near[i] = (const uint16_t *)keys + (l + i < length ? l + i : length - 1) * width;
        for (int m = 0; m < rows; m++)
            for (int i = 0; i < BLOCK; i++) dots[m][i] = _mm512_setzero_ps();
        for (int64_t c = 0; c < BLOCK * width; c += 32)
            _mm_prefetch((const char *)(near[0] + c) + AHEAD / 2, _MM_HINT_T0);
        for (int64_t c = 0; c < width; c += 16) {
            __m512 key[BLOCK];
            for (int i = 0; i < BLOCK; i++) key[i] = widened(near[i] + c);
            for (int m = 0; m < rows; m++) {
                const __m512 query = _mm512_loadu_ps(queries + m * width + c);
                for (int i = 0; i < BLOCK; i++) dots[m][i] = _mm512_fmadd_ps(key[i], query, dots[m][i]);
            }
        }
        for (int m = 0; m < rows; m++) _mm_storeu_ps(scores + m * stride + l, sums_of(dots[m]));
    }
}

/* The same with int8 keys, without their scales, of a width that is a multiple of 64 and at most 256: bytes with bytes,
   as in quantized_product; room for BLOCK times 2 * width. */
static inline __attribute__((always_inline)) void quantized_scores(
    const uint16_t *q, const char *keys, int64_t length, int64_t width, int rows, float *scores, int64_t stride,
    float *room) {
    int8_t *bytes = (int8_t *)(room + 2 * BLOCK);
    const Numbers x = {bytes, bytes + BLOCK * width, room, room + BLOCK};
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
                _mm_prefetch(near + i * width + c + AHEAD / 2, _MM_HINT_T0);
            }
            transpose(codes);
#pragma GCC unroll 16
            for (int i = 0; i < TILE; i++)
                for (int m = 0; m < rows; m++) {
                    const int64_t at = m * width + c + 4 * i;
                    high[m] = _mm512_dpbusd_epi32(high[m], codes[i], four(x.high + at));
                    low[m] = _mm512_dpbusd_epi32(low[m], codes[i], four(x.low + at));
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
    const __m512i whole = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(real, x.scales + l));
    return _mm512_mul_ps(y, _mm512_castsi512_ps(_mm512_slli_epi32(whole, 16)));
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

/* Add to `totals` [rows, width] `count` bfloat16 values times their weights, which stand in rows `stride` apart. */
static inline __attribute__((always_inline)) void add_dense(
    const char *values, const float *weights, int64_t stride, int64_t count, int64_t width, int rows, float *totals) {
    for (int64_t c = 0; c < width; c += 32) {
        __m512 first[BLOCK], second[BLOCK];
        for (int m = 0; m < rows; m++) {
            first[m] = _mm512_loadu_ps(totals + m * width + c);
            second[m] = _mm512_loadu_ps(totals + m * width + c + 16);
        }
        for (int64_t l = 0; l < count; l++) {
            const uint16_t *value = (const uint16_t *)values + l * width + c;
            const __m512 left = widened(value), right = widened(value + 16);
            _mm_prefetch((const char *)value + AHEAD / 2, _MM_HINT_T0);
            for (int m = 0; m < rows; m++) {
                const __m512 weight = _mm512_set1_ps(weights[m * stride + l]);
                first[m] = _mm512_fmadd_ps(left, weight, first[m]);
                second[m] = _mm512_fmadd_ps(right, weight, second[m]);
            }
        }
        for (int m = 0; m < rows; m++) {
            _mm512_storeu_ps(totals + m * width + c, first[m]);
            _mm512_storeu_ps(totals + m * width + c + 16, second[m]);
        }
    }
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

/* The same with at most SPAN int8 values, two and two, whose weights become whole numbers too: their sums are exact.
   Where `count` is odd the weight after the last is 0. */
static inline __attribute__((always_inline)) void add_quantized(
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
            _mm_prefetch(value + AHEAD / 2, _MM_HINT_T0);
            _mm_prefetch(value + AHEAD / 2 + width, _MM_HINT_T0);
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
static inline __attribute__((always_inline)) void attend_heads(
    const uint16_t *q, Vectors keys, Vectors values, uint16_t *out, int64_t length, int64_t width, int rows, int bits,
    float *weights) {
    const int64_t stride = (length + 15) / 16 * 16;
    float sums[BLOCK], *totals = weights + BLOCK * stride;
    if (bits == 8) quantized_scores(q, keys.numbers, length, width, rows, weights, stride, totals);
    else dense_scores(q, keys.numbers, length, width, rows, weights, stride, totals);
    for (int m = 0; m < rows; m++) sums[m] = softmax(weights + m * stride, keys, values, length, 1 / sqrtf(width));
    for (int64_t c = 0; c < rows * width; c++) totals[c] = 0;
    for (int64_t l = 0; l < length; l += SPAN) {
        const int64_t count = length - l < SPAN ? length - l : SPAN;
        const char *near = values.numbers + l * width * bits / 8;
        if (bits == 8) add_quantized(near, weights + l, stride, count, width, rows, totals);
        else add_dense(near, weights + l, stride, count, width, rows, totals);
    }
    for (int m = 0; m < rows; m++)
        for (int64_t c = m * width; c < (m + 1) * width; c += 16)
            narrow(out + c, _mm512_mul_ps(_mm512_loadu_ps(totals + c), _mm512_set1_ps(1 / sums[m])));
}

#define ATTEND(bits)                                                                                       \
    switch (rows) {                                                                                        \
    case 1: attend_heads(q + at, keys, values, out + at, length, width, 1, bits, room + i * size); break;  \
    case 2: attend_heads(q + at, keys, values, out + at, length, width, 2, bits, room + i * size); break;  \
    case 3: attend_heads(q + at, keys, values, out + at, length, width, 3, bits, room + i * size); break;  \
    default: attend_heads(q + at, keys, values, out + at, length, width, 4, bits, room + i * size);        \
    }

/* out [groups * per, width]: queries of the same shape over keys and values, `kv`; width a multiple of 32, and of int8
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
