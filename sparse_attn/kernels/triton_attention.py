"""Triton kernels over a block layout: attention, block sums, merging. Launched by `triton_launch`.

Every kernel exists in two forms: with tensor descriptors (copies by the tensor memory accelerator
of Hopper and later) and with plain pointers. Softmax runs in powers of two on unscaled products;
statistics are float32; what is stored is the natural logarithm.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
STARTS = ["q_start", "k_start", "q_start_b", "q_start_h", "k_start_b", "k_start_h"]
COUNTS = ["heads", "group", "blocks_q", "blocks_k", "seq_q", "seq_k", "work"]
LISTS = ["row_ptr", "col", "partial", "order", "lse", "sums"]
RUNTIME = [*STARTS, *COUNTS, *LISTS, "split_q", "split_k"]
"""Arguments by whose values and alignment nothing is compiled anew: one build serves all calls."""


@triton.jit
def tile(
    x,
    b,
    h,
    start,
    limit,
    stride_b,
    stride_s,
    stride_h,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    MASKED: tl.constexpr,
):
    """(ROWS, DIM) of batch entry b and head h of x, (B, S, H, HEAD), from token `start`.

    Masked rows from `limit` on are 0 and not read through pointers. Descriptors mask nothing: past
    `limit` they return what follows in the tensor, which may be NaN. Columns from HEAD on are 0.
    """
    if TMA:
        found = x.load([b, start, h, 0]).reshape(ROWS, DIM)
    else:
        rows = tl.arange(0, ROWS)[:, None]
        columns = tl.arange(0, DIM)[None, :]
        base = x + b.to(tl.int64) * stride_b + start.to(tl.int64) * stride_s + h * stride_h
        pointers = base + rows * stride_s + columns
        if MASKED:
            found = tl.load(pointers, mask=(rows < limit) & (columns < HEAD), other=0.0)
        elif HEAD < DIM:
            found = tl.load(pointers, mask=columns < HEAD, other=0.0)
        else:
            found = tl.load(pointers)
    return found


@triton.jit
def ended(x, limit, ROWS: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr):
    """A tile as a factor of a product: rows from `limit` on are 0, whatever a copy found there.

    Their weights are 0, but 0 times a NaN of the tokens that follow would be NaN.
    """
    if TMA and MASKED:
        x = tl.where((tl.arange(0, ROWS) < limit)[:, None], x, tl.zeros_like(x))
    return x


@triton.jit
def _attend_span(
    acc,
    total,
    top,
    q,
    k,
    v,
    b,
    h,
    col,
    starts,
    first,
    last,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    scale_log2,
    split_k,
    TILE_N: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Online softmax over entries `first` to `last` of a row, a tile of TILE_N keys at a time.

    A block is 2 ** split_k tiles. Which block is next is read one turn ahead: it is a load that
    other loads wait for.
    """
    offsets = tl.arange(0, TILE_N)
    count = (last - first) << split_k
    block = tl.load(col + first, mask=count > 0, other=0)
    for at in tl.range(0, count, num_stages=STAGES):
        start = tl.load(starts + block) + (at & ((1 << split_k) - 1)) * TILE_N
        limit = tl.load(starts + block + 1) - start
        block = tl.load(col + first + (tl.minimum(at + 1, count - 1) >> split_k))
        key = tile(
            k, b, h, start, limit, k_stride_b, k_stride_s, k_stride_h,
            TILE_N, DIM, HEAD, TMA, MASKED,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(key), input_precision=PRECISION)
        if MASKED:
            scores = tl.where(offsets[None, :] < limit, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
        # a row whose keys so far are all masked would give -inf - -inf
        shift = tl.where(new_top == -float("inf"), 0.0, new_top) if MASKED else new_top
        weights = tl.math.exp2(scores * scale_log2 - shift[:, None])
        fade = tl.math.exp2(top - shift)
        total = total * fade + tl.sum(weights, 1)
        value = tile(
            v, b, h, start, limit, v_stride_b, v_stride_s, v_stride_h,
            TILE_N, DIM, HEAD, TMA, MASKED,
        )  # fmt: skip
        value = ended(value, limit, TILE_N, TMA, MASKED)
        acc = acc * fade[:, None]
        acc = tl.dot(weights.to(value.dtype), value, acc, input_precision=PRECISION)
        top = new_top
    return acc, total, top


@triton.jit
def _place(
    item,
    order,
    q_start,
    q_start_b,
    q_start_h,
    heads,
    blocks_q,
    split_q,
    TILE_M: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
):
    """Where an item's queries are: row, batch entry, head, first token, how many; all as tiles."""
    row = tl.load(order + (item >> split_q))
    b = row // (heads * blocks_q)
    h = row // blocks_q % heads
    starts = q_start + b * q_start_b + h * q_start_h + row % blocks_q
    start = tl.load(starts) + (item & ((1 << split_q) - 1)) * TILE_M
    limit = tl.load(starts + 1) - start
    rows = tl.arange(0, TILE_M)
    # offsets that differ from item to item: others are kept in registers through all loops
    at = (start + rows)[:, None].to(tl.int64)
    kept = (rows < limit)[:, None] & (tl.arange(0, DIM)[None, :] < HEAD)
    return row, b, h, start, limit, at, kept


@triton.jit
def _attend_item(
    item,
    q,
    k,
    v,
    o,
    lse,
    row_ptr,
    col,
    partial,
    order,
    q_start,
    k_start,
    q_stride_b,
    q_stride_s,
    q_stride_h,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    o_stride_b,
    o_stride_s,
    o_stride_h,
    q_start_b,
    q_start_h,
    k_start_b,
    k_start_h,
    heads,
    group,
    blocks_q,
    seq_q,
    scale_log2,
    split_q,
    split_k,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One tile of queries: all its keys, first those of partial blocks, then those of full ones."""
    row, b, h, start, limit, at, kept = _place(
        item, order, q_start, q_start_b, q_start_h, heads, blocks_q, split_q,
        TILE_M, DIM, HEAD,
    )  # fmt: skip
    first = tl.load(row_ptr + row)
    last = tl.load(row_ptr + row + 1)
    last = tl.where(limit > 0, last, first)  # no queries, no work
    middle = tl.minimum(first + tl.load(partial + row), last)
    # through pointers, so that it stays in shared memory, where wgmma can take it from
    base = q + b.to(tl.int64) * q_stride_b + h * q_stride_h + tl.arange(0, DIM)[None, :]
    query = tl.load(base + at * q_stride_s, mask=kept, other=0.0)
    acc = tl.zeros([TILE_M, DIM], tl.float32)
    total = tl.zeros([TILE_M], tl.float32)
    top = tl.full([TILE_M], -float("inf"), tl.float32)
    keys = k_start + b * k_start_b + h * k_start_h
    acc, total, top = _attend_span(
        acc, total, top, query, k, v, b, h // group, col, keys, first, middle,
        k_stride_b, k_stride_s, k_stride_h, v_stride_b, v_stride_s, v_stride_h,
        scale_log2, split_k, TILE_N, DIM, HEAD, TMA, True, PRECISION, STAGES,
    )  # fmt: skip
    acc, total, top = _attend_span(
        acc, total, top, query, k, v, b, h // group, col, keys, middle, last,
        k_stride_b, k_stride_s, k_stride_h, v_stride_b, v_stride_s, v_stride_h,
        scale_log2, split_k, TILE_N, DIM, HEAD, TMA, False, PRECISION, STAGES,
    )  # fmt: skip
    total = tl.where(total > 0, total, 1.0)
    rows = tl.arange(0, TILE_M)
    line = lse + (b.to(tl.int64) * heads + h) * seq_q + start + rows
    tl.store(line, (top + tl.math.log2(total)) * LN2, mask=rows < limit)  # -inf without keys
    base = o + b.to(tl.int64) * o_stride_b + h * o_stride_h + tl.arange(0, DIM)[None, :]
    out = acc / total[:, None]
    tl.store(base + at * o_stride_s, out.to(o.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=RUNTIME)
def attention_forward(
    q,
    k,
    v,
    o,
    lse,
    row_ptr,
    col,
    partial,
    order,
    q_start,
    k_start,
    q_stride_b,
    q_stride_s,
    q_stride_h,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    o_stride_b,
    o_stride_s,
    o_stride_h,
    q_start_b,
    q_start_h,
    k_start_b,
    k_start_h,
    heads,
    group,
    blocks_q,
    seq_q,
    work,
    scale_log2,
    split_q,
    split_k,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """o (B, S_q, H, HEAD) and lse (B, H, S_q) of the rows in `order`, a tile of queries at a time.


    A query block is 2 ** split_q tiles; all tiles of all rows are `work` items. Either each has a
    program, or program p of a persistent grid takes items p, p + programs, ...
    """
    if PERSISTENT:
        for item in tl.range(tl.program_id(0), work, tl.num_programs(0), num_stages=1):
            _attend_item(
                item,
                q, k, v, o, lse, row_ptr, col, partial, order, q_start, k_start,
                q_stride_b, q_stride_s, q_stride_h, k_stride_b, k_stride_s,
                k_stride_h, v_stride_b, v_stride_s, v_stride_h, o_stride_b,
                o_stride_s, o_stride_h, q_start_b, q_start_h, k_start_b,
                k_start_h, heads, group, blocks_q, seq_q, scale_log2, split_q,
                split_k, TILE_M, TILE_N, DIM, HEAD, TMA, PRECISION, STAGES,
            )  # fmt: skip
    else:
        _attend_item(
            tl.program_id(0),
            q, k, v, o, lse, row_ptr, col, partial, order, q_start, k_start,
            q_stride_b, q_stride_s, q_stride_h, k_stride_b, k_stride_s, k_stride_h,
            v_stride_b, v_stride_s, v_stride_h, o_stride_b, o_stride_s, o_stride_h,
            q_start_b, q_start_h, k_start_b, k_start_h, heads, group, blocks_q,
            seq_q, scale_log2, split_q, split_k, TILE_M, TILE_N, DIM, HEAD, TMA,
            PRECISION, STAGES,
        )  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME)
def block_sums(
    q,
    k,
    lse,
    sums,
    q_start,
    k_start,
    q_stride_b,
    q_stride_s,
    q_stride_h,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    q_start_b,
    q_start_h,
    k_start_b,
    k_start_h,
    heads,
    group,
    blocks_q,
    blocks_k,
    seq_q,
    scale_log2,
    split_q,
    split_k,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """sums (B, H, nQ, 2 ** split_q, nK, 2 ** split_k): exp(scale q_i k_j - lse_i) summed by tile.

    One program per tile of queries walks all keys.
    """
    item = tl.program_id(0)
    row = item >> split_q
    b = row // (heads * blocks_q)
    h = row // blocks_q % heads
    rows = tl.arange(0, TILE_M)
    columns = tl.arange(0, DIM)
    offsets = tl.arange(0, TILE_N)
    starts = q_start + b * q_start_b + h * q_start_h + row % blocks_q
    start = tl.load(starts) + (item & ((1 << split_q) - 1)) * TILE_M
    limit = tl.load(starts + 1) - start
    inside = rows < limit
    at = (start + rows)[:, None].to(tl.int64)
    base = q + b.to(tl.int64) * q_stride_b + h * q_stride_h
    kept = inside[:, None] & (columns[None, :] < HEAD)
    query = tl.load(base + at * q_stride_s + columns[None, :], mask=kept, other=0.0)
    line = (b.to(tl.int64) * heads + h) * seq_q + start
    whole = tl.load(lse + line + rows, mask=inside, other=float("inf")) * LOG2E
    whole = tl.where(whole == -float("inf"), float("inf"), whole)  # attends to nothing: counts 0
    keys = k_start + b * k_start_b + h * k_start_h
    count = blocks_k << split_k
    out = sums + item.to(tl.int64) * count
    for turn in tl.range(0, count, num_stages=STAGES):
        block = turn >> split_k
        first = tl.load(keys + block) + (turn & ((1 << split_k) - 1)) * TILE_N
        end = tl.load(keys + block + 1) - first
        key = tile(
            k, b, h // group, first, end, k_stride_b, k_stride_s, k_stride_h,
            TILE_N, DIM, HEAD, TMA, True,
        )  # fmt: skip
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        weights = tl.math.exp2(scores * scale_log2 - whole[:, None])
        weights = tl.where(offsets[None, :] < end, weights, 0.0)
        tl.store(out + turn, tl.sum(tl.sum(weights, 1), 0))


@triton.jit(do_not_specialize=["lse1", "lse2", "lse", "rows", "seq", "heads"])
def merge_outputs(
    o1,
    lse1,
    o2,
    lse2,
    o,
    lse,
    rows,
    seq,
    heads,
    TILE_M: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
):
    """o, lse of the union of two disjoint sets of keys; outputs (B, S, H, HEAD) contiguous."""
    row = tl.program_id(0).to(tl.int64) * TILE_M + tl.arange(0, TILE_M)
    columns = tl.arange(0, DIM)
    inside = row < rows
    b = row // (seq * heads)
    at = (b * heads + row % heads) * seq + row // heads % seq
    first = tl.load(lse1 + at, mask=inside, other=-float("inf"))
    second = tl.load(lse2 + at, mask=inside, other=-float("inf"))
    top = tl.maximum(first, second)
    shift = tl.where(top == -float("inf"), 0.0, top)
    first = tl.math.exp2((first - shift) * LOG2E)
    second = tl.math.exp2((second - shift) * LOG2E)
    total = first + second
    some = total > 0
    total = tl.where(some, total, 1.0)
    found = tl.where(some, shift + tl.math.log2(total) * LN2, -float("inf"))
    tl.store(lse + at, found, mask=inside)
    where = row[:, None] * HEAD + columns[None, :]
    kept = inside[:, None] & (columns[None, :] < HEAD)
    left = tl.load(o1 + where, mask=kept, other=0.0).to(tl.float32)
    right = tl.load(o2 + where, mask=kept, other=0.0).to(tl.float32)
    out = left * (first / total)[:, None] + right * (second / total)[:, None]
    tl.store(o + where, out.to(o.dtype.element_ty), mask=kept)
