/* A decode step of all layers, and its parts between the products. */

#include "common.h"

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
   [positions, width] repeat after `positions` rows, and after half a width. Width a multiple of 16. */
void rotate(uint16_t *x, const float *cosines, const float *sines, int64_t rows, int64_t positions, int64_t heads,
            int64_t turned, int64_t width, int64_t threads) {
    const int64_t half = width / 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (rows > BLOCK)
    for (int64_t m = 0; m < rows; m++)
        for (int64_t h = 0; h < turned; h++)
            for (int64_t k = 0; k < half; k += 16) {
                const __mmask16 real = half - k < 16 ? 0xff : 0xffff;
                uint16_t *first = x + (m * heads + h) * width + k, *second = first + half;
                const __m512 a = widened_real(first, real), b = widened_real(second, real);
                const __m512 cosine = _mm512_maskz_loadu_ps(real, cosines + m % positions * width + k);
                const __m512 sine = _mm512_maskz_loadu_ps(real, sines + m % positions * width + k);
                narrow_real(first, real, _mm512_fmsub_ps(a, cosine, _mm512_mul_ps(b, sine)));
                narrow_real(second, real, _mm512_fmadd_ps(b, cosine, _mm512_mul_ps(a, sine)));
            }
}

/* A layer. Widths are multiples of 32, those of heads of 16. */
typedef struct {
    const uint16_t *norm, *mlp_norm;         /* [width] */
    const Product *in, *back, *gates, *down; /* in: queries, and where they are the text's, keys and values */
    /* Where the layer looks at pictures, else NULL: [head_dim], and twice one number. */
    const uint16_t *query_norm, *attention_gate, *mlp_gate;
} Layer;

/* The keys and values of all layers of a kind. */
typedef struct {
    Vectors kv[2];             /* of the first layer: [groups, .., head_dim] */
    int64_t next, next_scales; /* bytes, and scales, from one layer to the next */
    int64_t length;
} Kept;

/* The heads of a layer. */
typedef struct {
    int64_t heads, groups, width;
} Heads;

/* Keep a vector of each group at `place`: as it is, or as whole numbers (see quantize_vectors in kv_cache.py, whose
   roundings these are). */
static void keep(const uint16_t *x, Vectors to, int64_t groups, int64_t place, int64_t width) {
    for (int64_t g = 0; g < groups; g++, x += width) {
        const Vectors own = group_of(to, g);
        if (!own.scales) {
            memcpy((char *)own.numbers + 2 * place * width, x, 2 * width);
            continue;
        }
        __m512 most = _mm512_setzero_ps();
        __mmask16 bad = 0;
        for (int64_t c = 0; c < width; c += 16) {
            bad |= _mm512_cmp_ps_mask(widened(x + c), widened(x + c), _CMP_UNORD_Q);
            most = _mm512_max_ps(most, _mm512_abs_ps(widened(x + c)));
        }
        uint16_t scale[16];
        narrow(scale, _mm512_set1_ps(bad ? NAN : fmaxf(_mm512_reduce_max_ps(most) / 127, 0x1p-126f)));
        ((uint16_t *)own.scales)[place] = scale[0];
        for (int64_t c = 0; c < width; c += 16) {
            const __m512 y = _mm512_div_ps(widened(x + c), widened(scale));
            const __m512i code = _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(y, y, _CMP_ORD_Q), y);
            _mm_storeu_si128((void *)(own.numbers + place * width + c), _mm512_cvtsepi32_epi8(code));
        }
    }
}

/* Add to x what is in `more`, or where there is a gate what it lets through, rounded as torch does. */
static void add(uint16_t *x, uint16_t *more, const uint16_t *gate, int64_t width) {
    uint16_t share[16];
    if (gate) narrow(share, _mm512_set1_ps(tanhf(_mm512_cvtss_f32(widened_real(gate, 1)))));
    for (int64_t c = 0; c < width; c += 16) {
        if (gate) narrow(more + c, _mm512_mul_ps(widened(more + c), widened(share)));
        narrow(x + c, _mm512_add_ps(widened(x + c), widened(more + c)));
    }
}

/* What one layer makes of x [width], in its place. Returns 1 where memory ran out. */
static int decode_layer(uint16_t *x, const Layer *layer, const Kept *kept, int64_t index, Heads h, const float *cosines,
                        const float *sines, double eps, int64_t threads) {
    const int64_t width = layer->in->cols, queries = h.heads * h.width, mlp = layer->down->cols;
    const int64_t most = layer->in->out, own = h.groups * h.width;
    Vectors kv[2] = {kept->kv[0], kept->kv[1]};
    for (int i = 0; i < 2; i++) {
        kv[i].numbers += index * kept->next;
        if (kv[i].scales) kv[i].scales += index * kept->next_scales;
    }
    uint16_t *y = malloc(2 * (width + most + queries + 3 * mlp));
    if (!y) return 1;
    uint16_t *q = y + width, *attended = q + most, *gates = attended + queries, *hidden = gates + 2 * mlp;
    rms_norm(x, layer->norm, y, 1, width, eps);
    int failed = product(y, q, 1, layer->in, threads);
    if (layer->query_norm) {
        rms_norm(q, layer->query_norm, q, h.heads, h.width, eps);
    } else {
        rotate(q, cosines, sines, 1, 1, h.heads + 2 * h.groups, h.heads + h.groups, h.width, threads);
        for (int i = 0; i < 2; i++) keep(q + queries + i * own, kv[i], h.groups, kept->length - 1, h.width);
    }
    failed |= attend_one(q, kv, attended, h.groups, h.heads / h.groups, kept->length, h.width, threads);
    failed |= product(attended, y, 1, layer->back, threads);
    add(x, y, layer->attention_gate, width);
    rms_norm(x, layer->mlp_norm, y, 1, width, eps);
    failed |= product(y, gates, 1, layer->gates, threads);
    gated(gates, hidden, 1, mlp, threads);
    failed |= product(hidden, y, 1, layer->down, threads);
    add(x, y, layer->mlp_gate, width);
    free(y);
    return failed;
}

/* x [width]: what all layers make of it, in its place. Keys and values of the text are kept at its last position.
   Layers that look at pictures are left out where there is none (NULL). Returns 1 where memory ran out. */
int decode_step(uint16_t *x, const Layer *layers, int64_t num_layers, const Kept *text, const Kept *pictures,
                int64_t heads, int64_t groups, int64_t width, const float *cosines, const float *sines, double eps,
                int64_t threads) {
    const Heads h = {heads, groups, width};
    int64_t num_text = 0, num_seeing = 0;
    int failed = 0;
    for (const Layer *layer = layers; layer < layers + num_layers && !failed; layer++)
        if (!layer->query_norm)
            failed = decode_layer(x, layer, text, num_text++, h, cosines, sines, eps, threads);
        else if (pictures)
            failed = decode_layer(x, layer, pictures, num_seeing++, h, cosines, sines, eps, threads);
    return failed;
}
