"""What a decode step on a GPU is made of, in Triton: each reads its weights, or its keys and values, once.

Names in capitals are fixed when a kernel is compiled. Rows of weights and of keys are spread over programs.
"""

import triton
import triton.language as tl

# A whole number below 2**23 in the lower bits of this is the float 2**23 plus that number.
_FLOAT_2_23: tl.constexpr = tl.constexpr(0x4B000000)


@triton.jit
def _dot(
    x, norm, w, scales, zeros, rows, num_rows,
    BITS: tl.constexpr, GROUP: tl.constexpr, COLS: tl.constexpr, ROWS_EACH: tl.constexpr, COLS_EACH: tl.constexpr,
):  # fmt: skip
    """Return [ROWS_EACH] float32: x · norm times `rows` of the weights; and the sum of the squares of x."""
    if BITS == 4:
        found, squares = _dot_of_words(x, norm, w, scales, zeros, rows, num_rows, GROUP, COLS, ROWS_EACH, COLS_EACH)
    else:
        found, squares = _dot_of_numbers(x, norm, w, rows, num_rows, COLS, ROWS_EACH, COLS_EACH)
        if BITS == 8:
            found *= tl.load(scales + rows, rows < num_rows, 0).to(tl.float32)
    return found, squares


@triton.jit
def _dot_of_numbers(x, norm, w, rows, num_rows, COLS: tl.constexpr, ROWS_EACH: tl.constexpr, COLS_EACH: tl.constexpr):
    """Return what `_dot` does for weights that are floats, or whole numbers of 8 bits."""
    live, before = rows < num_rows, rows.to(tl.int64) * COLS
    sums = tl.zeros([ROWS_EACH, COLS_EACH], tl.float32)
    squares = tl.zeros([COLS_EACH], tl.float32)
    for start in range(0, COLS, COLS_EACH):
        cols = start + tl.arange(0, COLS_EACH)
        there = cols < COLS
        weights = tl.load(w + (before[:, None] + cols[None, :]), live[:, None] & there[None, :], 0)
        one = tl.load(x + cols, there, 0).to(tl.float32)
        squares += one * one
        if norm is not None:
            one *= tl.load(norm + cols, there, 0).to(tl.float32)
        sums += one[None, :] * weights.to(tl.float32)
    return tl.sum(sums, 1), tl.sum(squares, 0)


@triton.jit
def _dot_of_words(
    x, norm, w, scales, zeros, rows, num_rows,
    GROUP: tl.constexpr, COLS: tl.constexpr, ROWS_EACH: tl.constexpr, COLS_EACH: tl.constexpr,
):  # fmt: skip
    """Return what `_dot` does for weights of 4 bits, eight columns in a word of 32."""
    EACH: tl.constexpr = COLS_EACH // 8
    live = (rows < num_rows)[:, None]
    before, before_scales = rows.to(tl.int64)[:, None] * (COLS // 8), rows.to(tl.int64)[:, None] * (COLS // GROUP)
    in_word = tl.arange(0, 8)
    sums = tl.zeros([ROWS_EACH, EACH], tl.float32)
    squares = tl.zeros([EACH, 8], tl.float32)
    for start in range(0, COLS // 8, EACH):
        places = start + tl.arange(0, EACH)
        there = places < COLS // 8
        words = tl.load(w + (before + places[None, :]), live & there[None, :], 0)
        cols = 8 * places[:, None] + in_word[None, :]
        one = tl.load(x + cols, there[:, None], 0).to(tl.float32)
        squares += one * one
        if norm is not None:
            one *= tl.load(norm + cols, there[:, None], 0).to(tl.float32)
        numbers = ((words[:, :, None] >> (4 * in_word)[None, None, :]) & 15) | _FLOAT_2_23
        # 8 stands for 0.
        numbers = numbers.to(tl.float32, bitcast=True) - (8388608.0 + 8.0)
        found = tl.sum(numbers * one[None, :, :], 2)
        at = before_scales + (places // (GROUP // 8))[None, :]
        if zeros is not None:
            found -= tl.load(zeros + at, live & there[None, :], 0).to(tl.float32) * tl.sum(one, 1)[None, :]
        sums += found * tl.load(scales + at, live & there[None, :], 0).to(tl.float32)
    return tl.sum(sums, 1), tl.sum(tl.sum(squares, 1), 0)


@triton.jit
def product_of_one_row(
    x, norm, eps, w0, s0, z0, w1, s1, z1, w2, s2, z2, n0, n1, n2, residual, gate, out,
    BITS: tl.constexpr, GROUP: tl.constexpr, COLS: tl.constexpr, GATED: tl.constexpr,
    ROWS_EACH: tl.constexpr, COLS_EACH: tl.constexpr,
):  # fmt: skip
    """Write x [COLS], normalised where `norm` is given, times up to three weights [n, COLS], one after the other.

    GATED: silu(x · w0) · (x · w1) instead, rounded once.
    residual, gate: the result times tanh(gate) is added to `residual`, each rounded as torch rounds it.
    """
    block = tl.program_id(0)
    first, second = tl.cdiv(n0, ROWS_EACH), tl.cdiv(n1, ROWS_EACH)
    rows = tl.arange(0, ROWS_EACH)
    w, scales, zeros, num_rows, before = w0, s0, z0, n0, 0
    if not GATED and w1 is not None:
        if block >= first:
            w, scales, zeros, num_rows, before, block = w1, s1, z1, n1, n0, block - first
            if w2 is not None:
                if block >= second:
                    w, scales, zeros, num_rows, before, block = w2, s2, z2, n2, n0 + n1, block - second
    rows += block * ROWS_EACH
    live = rows < num_rows
    found, squares = _dot(x, norm, w, scales, zeros, rows, num_rows, BITS, GROUP, COLS, ROWS_EACH, COLS_EACH)
    scale = 1.0
    if norm is not None:
        scale = 1.0 / tl.sqrt(squares / COLS + eps)
    found *= scale
    if GATED:
        up, _ = _dot(x, norm, w1, s1, z1, rows, num_rows, BITS, GROUP, COLS, ROWS_EACH, COLS_EACH)
        found = found / (1.0 + tl.exp(-found)) * (up * scale)
    result = found.to(out.dtype.element_ty)
    if residual is not None:
        if gate is not None:
            opening = 1.0 - 2.0 / (tl.exp(2.0 * tl.load(gate).to(tl.float32)) + 1.0)
            opening = opening.to(out.dtype.element_ty).to(tl.float32)
            result = (result.to(tl.float32) * opening).to(out.dtype.element_ty)
        kept = tl.load(residual + rows, live, 0).to(tl.float32)
        result = (kept + result.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + before + rows, result, live)


@triton.jit
def product_of_rows(
    x, w, scales, zeros, out, num_x, num_rows,
    BITS: tl.constexpr, GROUP: tl.constexpr, COLS: tl.constexpr,
    X_EACH: tl.constexpr, ROWS_EACH: tl.constexpr, COLS_EACH: tl.constexpr,
):  # fmt: skip
    """Write x [num_x, COLS] times quantised weights [num_rows, COLS], expanded a block at a time as torch expands them.

    At 4 bits a byte holds an even column and the odd one after it: the two halves are a product each.
    """
    rows = tl.program_id(0) * ROWS_EACH + tl.arange(0, ROWS_EACH)
    mine = tl.program_id(1) * X_EACH + tl.arange(0, X_EACH)
    live, real = rows < num_rows, mine < num_x
    wide = rows.to(tl.int64)
    HALVES: tl.constexpr = 8 // BITS
    EACH: tl.constexpr = COLS_EACH // HALVES
    sums = tl.zeros([X_EACH, ROWS_EACH], tl.float32)
    for start in range(0, COLS, COLS_EACH):
        places = start // HALVES + tl.arange(0, EACH)
        there = places < COLS // HALVES
        codes = tl.load(w + (wide[:, None] * (COLS // HALVES) + places[None, :]), live[:, None] & there[None, :], 0)
        group = wide[:, None] * (COLS // GROUP) + (places * HALVES // GROUP)[None, :]
        known = live[:, None] & there[None, :]
        scale = tl.load(scales + group, known, 0).to(tl.float32)
        for half in tl.static_range(HALVES):
            numbers = codes if BITS == 8 else ((codes >> (4 * half)) & 15)
            numbers = numbers.to(tl.float32) - (0.0 if BITS == 8 else 8.0)
            if zeros is not None:
                numbers -= tl.load(zeros + group, known, 0).to(tl.float32)
            expanded = (numbers * scale).to(x.dtype.element_ty)
            at = mine[:, None] * COLS + (HALVES * places + half)[None, :]
            one = tl.load(x + at, real[:, None] & there[None, :], 0)
            sums = tl.dot(one, tl.trans(expanded), sums, input_precision="ieee")
    at = mine[:, None].to(tl.int64) * num_rows + rows[None, :]
    tl.store(out + at, sums.to(out.dtype.element_ty), real[:, None] & live[None, :])


@triton.jit
def rotate_and_keep(
    heads, cos, sin, position, queries, keys, values, key_scales, value_scales, by_head, by_position, scales_by_head,
    NUM_QUERIES: tl.constexpr, NUM_KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Turn queries and keys of `heads` [h + 2g, e] by cos and sin [e]; keys and values go to `position` of the cache.

    Where the cache has scales, its vectors are whole numbers from -127 to 127 times one: see `quantize_vectors`.
    """
    head = tl.program_id(0)
    places = tl.arange(0, WIDTH)
    one = tl.load(heads + head * WIDTH + places).to(tl.float32)
    if head < NUM_QUERIES + NUM_KEYS:
        half: tl.constexpr = WIDTH // 2
        other = tl.load(heads + head * WIDTH + (places + half) % WIDTH).to(tl.float32)
        other = tl.where(places < half, -other, other)
        one = one * tl.load(cos + places) + other * tl.load(sin + places)
        # Rounded before it is quantised, as one is that goes through torch.
        one = one.to(heads.dtype.element_ty).to(tl.float32)
    if head < NUM_QUERIES:
        tl.store(queries + head * WIDTH + places, one.to(queries.dtype.element_ty))
    else:
        group = head - NUM_QUERIES
        to, scales = keys, key_scales
        if group >= NUM_KEYS:
            group -= NUM_KEYS
            to, scales = values, value_scales
        at = tl.load(position)
        if scales is not None:
            scale = tl.maximum(tl.max(tl.abs(one), 0) / 127, 1.1754943508222875e-38).to(scales.dtype.element_ty)
            # Adding and taking 1.5 · 2**23 rounds to the nearest whole number, halves to the even one.
            one = (one / scale.to(tl.float32) + 12582912.0) - 12582912.0
            one = tl.minimum(tl.maximum(one, -127.0), 127.0)
            tl.store(scales + group * scales_by_head + at, scale)
        tl.store(to + group * by_head + at * by_position + places, one.to(to.dtype.element_ty))


@triton.jit
def attend_in_parts(
    queries, norm, eps, keys, values, key_scales, value_scales, mask, sums, tops, totals, length, softmax_scale,
    q_by_row, q_by_head, by_row, by_head, by_position, scales_by_row, scales_by_head, mask_by_row,
    REPEATS: tl.constexpr, QUERIES_EACH: tl.constexpr, WIDTH: tl.constexpr, PART: tl.constexpr, KEYS_EACH: tl.constexpr,
):  # fmt: skip
    """Attend from one position with the queries of one head of keys, over PART of the keys: program (row, head, part).

    Writes to `sums` [b, h, parts, e] the values' sum, to `tops` and `totals` [b, h, parts] the largest score and the
    sum of the weights. mask [b, l] says which keys may be seen; a part of which none may takes no time.
    norm, eps: of the queries, which are normalised first where it is given.
    """
    row, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    each, places = tl.arange(0, QUERIES_EACH), tl.arange(0, WIDTH)
    real = each < REPEATS
    at = row * q_by_row + (head * REPEATS + each)[:, None] * q_by_head + places[None, :]
    q = tl.load(queries + at, real[:, None], 0)
    if norm is not None:
        wide = q.to(tl.float32)
        wide *= 1.0 / tl.sqrt(tl.sum(wide * wide, 1) / WIDTH + eps)[:, None]
        q = (wide * tl.load(norm + places).to(tl.float32)[None, :]).to(queries.dtype.element_ty)
    top = tl.full([QUERIES_EACH], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES_EACH], tl.float32)
    found = tl.zeros([QUERIES_EACH, WIDTH], tl.float32)
    for start in range(0, PART, KEYS_EACH):
        positions = part * PART + start + tl.arange(0, KEYS_EACH)
        seen = positions < length
        if mask is not None:
            seen = seen & (tl.load(mask + row * mask_by_row + positions, seen, 0) != 0)
        if tl.max(seen.to(tl.int32), 0) > 0:
            where = row * by_row + head * by_head + positions.to(tl.int64)[:, None] * by_position + places[None, :]
            k = tl.load(keys + where, seen[:, None], 0).to(q.dtype)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * softmax_scale
            of_scales = row * scales_by_row + head * scales_by_head + positions
            if key_scales is not None:
                scores *= tl.load(key_scales + of_scales, seen, 0).to(tl.float32)[None, :]
            scores = tl.where(seen[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            rescale = tl.exp(top - higher)
            total = total * rescale + tl.sum(weights, 1)
            if value_scales is not None:
                weights *= tl.load(value_scales + of_scales, seen, 0).to(tl.float32)[None, :]
            v = tl.load(values + where, seen[:, None], 0).to(q.dtype)
            found = tl.dot(weights.to(q.dtype), v, found * rescale[:, None], input_precision="ieee")
            top = higher
    num_heads, num_parts = tl.num_programs(1) * REPEATS, tl.num_programs(2)
    to = (row * num_heads + head * REPEATS + each) * num_parts + part
    tl.store(tops + to, top, real)
    tl.store(totals + to, total, real)
    tl.store(sums + to[:, None] * WIDTH + places[None, :], found, real[:, None])


@triton.jit
def join_parts(sums, tops, totals, out, num_parts, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """Join what `attend_in_parts` found of each head, [rows, parts, e], into out [rows, e]: program (row).

    Parts that saw nothing have the largest score -inf; a row that saw nothing at all gives zeros.
    """
    row = tl.program_id(0).to(tl.int64)
    parts, places = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    known = parts < num_parts
    top = tl.load(tops + row * num_parts + parts, known, float("-inf"))
    highest = tl.max(top, 0)
    shares = tl.exp(top - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(shares * tl.load(totals + row * num_parts + parts, known, 0.0), 0)
    at = (row * num_parts + parts)[:, None] * WIDTH + places[None, :]
    found = tl.sum(shares[:, None] * tl.load(sums + at, (known & (shares > 0))[:, None], 0.0), 0)
    tl.store(out + row * WIDTH + places, (found / tl.where(total == 0.0, 1.0, total)).to(out.dtype.element_ty))
