# ruff: noqa: F821
# mypy: ignore-errors
"""D_f(p_T, p_S) of rows of logits, or of k known classes and a tail, with the gradient in the student's.

This file is text: `source` puts it after AT_ZERO, SLOPE and the functions perspective(log p, log q) =
q f(p/q) and slope_in_q, its derivative in log q. Classes without probability are at the edges of f, and
columns beyond the end of a row are such classes on both sides.
"""


@triton.jit
def load_row(row, columns, n):
    return tl.load(row + columns, mask=columns < n, other=float("-inf")).to(tl.float32)


@triton.jit
def times(x, factor: tl.constexpr):
    if tl.constexpr(-float("inf") < factor) and tl.constexpr(factor < float("inf")):
        return x * factor
    else:
        return tl.where(x > 0, factor, 0.0)


@triton.jit
def compare(log_p, log_q):
    """q f(p/q) and its derivative in log q, also where p or q is 0; NaN where either is."""
    inside = isfinite(log_p) & isfinite(log_q)
    safe_p = tl.where(inside, log_p, 0.0)
    safe_q = tl.where(inside, log_q, 0.0)
    q = tl.exp(log_q)
    edge = tl.where(q > 0, times(q, AT_ZERO), times(tl.exp(log_p), SLOPE))
    either = log_p + log_q
    edge = tl.where(either == either, edge, either)
    moved = tl.where(q > 0, q * (AT_ZERO if float("inf") > AT_ZERO else 0.0), 0.0)
    return (
        tl.where(inside, perspective(safe_p, safe_q), edge),
        tl.where(inside, slope_in_q(safe_p, safe_q), moved),
    )


@triton.jit
def sum_lanes(high, mass):
    """The highest score of a row, and Σ e^(score - highest)."""
    top = tl.max(high)
    return top, tl.sum(mass * tl.exp(high - top))


@triton.jit
def distil_rows(
    student,
    student_stride,
    teacher,
    teacher_stride,
    n,
    scale,
    out,
    out_stride,
    loss,
    BLOCK: tl.constexpr,
    STORE: tl.constexpr,
):
    """The loss of one row, and its gradient in the student's logits times `scale`."""
    row = tl.program_id(0).to(tl.int64)  # offsets may exceed 2^31
    x_row = student + row * student_stride
    t_row = teacher + row * teacher_stride
    lanes = tl.arange(0, BLOCK)
    x_high = tl.full([BLOCK], float("-inf"), tl.float32)
    t_high = x_high
    x_mass = tl.zeros([BLOCK], tl.float32)
    t_mass = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, n, BLOCK, num_stages=STAGES):
        columns = start + lanes
        x_high, x_mass = add_exp(x_high, x_mass, load_row(x_row, columns, n) * scale)
        t_high, t_mass = add_exp(t_high, t_mass, load_row(t_row, columns, n) * scale)
    x_top, x_mass_sum = sum_lanes(x_high, x_mass)
    t_top, t_mass_sum = sum_lanes(t_high, t_mass)
    x_level = log(x_mass_sum)
    t_level = log(t_mass_sum)
    value = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, n, BLOCK, num_stages=STAGES):
        columns = start + lanes
        log_q = load_row(x_row, columns, n) * scale - x_top - x_level
        log_p = load_row(t_row, columns, n) * scale - t_top - t_level
        each, slope = compare(log_p, log_q)
        value += each
        moment += slope
    tl.store(loss + row, tl.sum(value))
    if STORE:
        moments = tl.sum(moment)
        for start in tl.range(0, n, BLOCK, num_stages=STAGES):
            columns = start + lanes
            log_q = load_row(x_row, columns, n) * scale - x_top - x_level
            log_p = load_row(t_row, columns, n) * scale - t_top - t_level
            gradient = compare(log_p, log_q)[1] - tl.exp(log_q) * moments
            tl.store(out + row * out_stride + columns, gradient.to(out.dtype.element_ty), mask=columns < n)


@triton.jit
def distil_buckets(
    student,
    student_stride,
    indices,
    log_probs,
    log_tail,
    listed,
    listed_stride,
    n,
    k,
    scale,
    out,
    out_stride,
    loss,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
    STORE: tl.constexpr,
):
    """The same between k + 1 buckets; `listed` is one bit a class, zero at first.

    The mass of the tail is a sum of its own: a difference would have no digits where it is small. A row
    with an index that is no class gives NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    x_row = student + row * student_stride
    bits_row = listed + row * listed_stride
    out_row = out + row * out_stride
    lanes = tl.arange(0, BLOCK)
    slots = tl.arange(0, SLOTS)
    index = tl.load(indices + row * k + slots, mask=slots < k, other=-1).to(tl.int32)
    known = (index >= 0) & (index < n)
    tl.atomic_or(bits_row + (index >> 5), 1 << (index & 31), mask=known)
    tl.debug_barrier()  # all threads see the bits
    x_known = tl.load(x_row + index, mask=known, other=float("-inf")).to(tl.float32) * scale
    x_known = tl.where(index < n, x_known, float("nan"))
    log_p = tl.load(log_probs + row * k + slots, mask=slots < k, other=float("-inf")).to(tl.float32)
    log_p_tail = tl.load(log_tail + row).to(tl.float32)
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, n, BLOCK, num_stages=STAGES):
        columns = start + lanes
        word = tl.load(bits_row + (columns >> 5), mask=columns < n, other=0, cache_modifier=".cg")
        x = load_row(x_row, columns, n) * scale
        high, mass = add_exp(high, mass, tl.where(((word >> (columns & 31)) & 1) == 1, float("-inf"), x))
    tail_top = tl.max(high)
    top = tl.maximum(tail_top, tl.max(x_known))
    tail_mass = tl.sum(mass * tl.exp(high - tl.where(tail_top == float("-inf"), 0.0, tail_top)))
    level = log(tail_mass * tl.exp(tail_top - top) + tl.sum(tl.exp(x_known - top)))
    log_q = x_known - top - level
    log_q_tail = tail_top - top + log(tail_mass) - level
    each, slope = compare(log_p, log_q)
    tail, tail_slope = compare(log_p_tail, log_q_tail)
    tl.store(loss + row, tl.sum(each) + tail)
    if STORE:
        moments = tl.sum(slope) + tail_slope
        empty = tail_top == float("-inf")
        all_others = tl.where(empty, 0.0, tail_slope - moments * tl.exp(log_q_tail))
        tail_level = tl.where(empty, top, tail_top + log(tail_mass))
        for start in tl.range(0, n, BLOCK, num_stages=STAGES):
            columns = start + lanes
            gradient = all_others * tl.exp(load_row(x_row, columns, n) * scale - tail_level)
            tl.store(out_row + columns, gradient.to(out.dtype.element_ty), mask=columns < n)
        tl.debug_barrier()  # what follows replaces some of it
        gradient = slope - moments * tl.exp(log_q)
        tl.store(out_row + index, gradient.to(out.dtype.element_ty), mask=known)
