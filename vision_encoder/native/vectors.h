/* What all our C shares: registers of 512 bits. */

#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TILE 16 /* the lanes of a register */

/* Always inlined, with the number of rows known. */
#define INLINE static inline __attribute__((always_inline))

/* Of 16 lines of 16 words put words of four lines side by side: x[i + k] then holds the words k, 4 + k, 8 + k and 12 + k
   of the lines i to i + 3. */
INLINE void put_by_fours(__m512i *x) {
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
}

/* Turn 16 lines of 16 words: word i of line k becomes word k of line i. */
static inline void transpose(__m512i *x) {
    __m512i y[TILE];
    put_by_fours(x);
    /* Even and odd ones of the words part. */
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
