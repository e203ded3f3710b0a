/* What the processor is and how memory is asked for. */

#include "common.h"
#include <sys/mman.h>

int64_t ahead = 8192, ahead_of_4 = 8192;
int by_pairs = 0;

/* Called first. */
void meet_processor(int64_t multiplies_pairs) {
    by_pairs = multiplies_pairs;
    if (__builtin_cpu_is("amd")) ahead = 0, ahead_of_4 = 4096;
}

/* Ask for large pages, with which memory is read faster. A wish: it may be ignored. */
void large_pages(char *start, int64_t size) {
    char *aligned = (char *)(((intptr_t)start + 4095) & ~(intptr_t)4095);
    if (aligned < start + size) madvise(aligned, start + size - aligned, MADV_HUGEPAGE);
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
