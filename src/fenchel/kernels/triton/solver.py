# ruff: noqa: F821
# mypy: ignore-errors
"""f-softargmax of a row by one program: the root is found on a summary of the row that is held on chip.

This file is text: `source` puts it after the constants and functions of a record, which are REAL, KAPPA,
SPARSE, CLOSED, STEEP, SETTLED, RESOLUTION, MOST_STEPS, CHANCES and derivative, shift, elasticity, response
(u and its elasticity), bend, conjugate_of_ratio.

The unknown is U = p / q of the top class, see kernels/eager.py. Column j of a row belongs to lane j mod
BLOCK, and the first pass over a row keeps the highest score of each lane, so
  - a row that is no longer than BLOCK is its own summary: it is read once and written once;
  - CLOSED records, whose f*' is an exponential, sum their lanes while they look for the maximum;
  - for SPARSE ones the highest scores are all that matters if the second ones of all lanes turn out to be
    below the support, as is likely where the support is small; if not, the root of the lanes is an upper
    bound of the root, and a close one;
  - for others one more class of each lane, spread over the vocabulary, stands for the rest of its lane. The
    root of that estimate is so near that one or two passes over the row settle it.
"""


@triton.jit
def load_row(row, columns, n, beyond):
    return tl.load(row + columns, mask=columns < n, other=beyond).to(REAL)


@triton.jit
def load_measure(row, columns, n, Q: tl.constexpr):
    if Q:
        return load_row(row, columns, n, 1.0)
    else:
        return tl.full(columns.shape, 1.0, REAL)


@triton.jit
def evaluate(ratio, gap, q):
    """p at U = ratio, and its first three derivatives in v, the third to what powers of u have."""
    u, e = response(ratio, gap)
    alive = u > 0
    p = q * u
    w = tl.where(alive, p * e, 0.0)
    if STEEP:
        return p, w, w, w
    else:
        b = tl.where(alive, bend(u, e), 0.0)
        second = w * b
        return p, w, second, tl.where(alive, second * (2.0 * b - e), 0.0)


@triton.jit
def total(p, w, second, third):
    if STEEP:
        return tl.sum(p), tl.sum(w), 0.0, 0.0
    else:
        return tl.sum(p), tl.sum(w), tl.sum(second), tl.sum(third)


@triton.jit
def last_step(mass, weight, second, third):
    """The d with mass + weight d + second d² / 2 + third d³ / 6 = 1."""
    d = (1.0 - mass) / weight
    if not STEEP:
        for _ in tl.static_range(4):
            value = mass - 1.0 + d * (weight + d * (second * 0.5 + d * third * (1 / 6)))
            d -= value / (weight + d * (second + d * third * 0.5))
    return d


@triton.jit
def advance(ratio, low, high, mass, weight, step):
    """Newton's step in the coordinate (U^κ - 1) / κ within the bracket, and whether there is need of one."""
    elasticity = response(ratio, ratio * 0.0)[1]
    settled = (tl.abs(1.0 - mass) <= SETTLED) & (tl.abs(1.0 - mass) * elasticity <= weight * (2 * SETTLED))
    slope = weight / (mass * elasticity)
    log_mass = log(mass)
    if KAPPA == 0:
        factor = tl.exp(-log_mass / slope)
    else:
        factor = tl.exp(log1p(expm1(log_mass * -KAPPA) / slope) * (1 / KAPPA))
    low = tl.where(mass <= 1, tl.maximum(low, ratio), low)
    high = tl.where(mass >= 1, tl.minimum(high, ratio), high)
    moved = ratio * factor
    inside = (moved > low) & (moved < high)
    # Steps can shrink to nothing at a steep threshold, and f of one's own may send them to and fro.
    if step > CHANCES:
        inside = inside & (step % 2 == 0)
    inside = inside | (moved == ratio)
    moved = tl.where(inside, moved, tl.sqrt(low * high))
    # What a step within the resolution of U would leave is for the last step. NaN ends the search.
    going = (tl.abs(moved - ratio) > ratio * RESOLUTION) & (step < MOST_STEPS) & (settled == 0)
    return tl.where(going, moved, ratio), low, high, going


@triton.jit
def summarise(x_row, q_row, n, BLOCK: tl.constexpr, WHOLE: tl.constexpr, Q: tl.constexpr):
    """Of each lane: its highest score, the measure there, another score, and the measure of the lane."""
    lanes = tl.arange(0, BLOCK)
    if WHOLE:
        high = load_row(x_row, lanes, n, float("-inf"))
        weight = load_measure(q_row, lanes, n, Q)
        mass = tl.where(high == float("-inf"), 0.0, weight)
        return high, weight, high, mass
    else:
        high = tl.full([BLOCK], float("-inf"), REAL)
        other = high
        weight = tl.zeros([BLOCK], REAL)
        mass = tl.zeros([BLOCK], REAL)
        chosen = tl.maximum(lanes % tl.cdiv(n, BLOCK), 1) * BLOCK
        for start in tl.range(0, n, BLOCK, num_stages=STAGES):
            x = load_row(x_row, start + lanes, n, float("-inf"))
            q = load_measure(q_row, start + lanes, n, Q)
            absent = x == float("-inf")
            up = x > high
            if CLOSED:
                moved = shift(tl.where(up, weight, q), tl.abs(x - high)) + tl.where(up, q, weight)
                weight = tl.where(absent, weight, moved)
            else:
                lost = tl.minimum(x, high)
                other = tl.maximum(other, lost) if SPARSE else tl.where(chosen == start, lost, other)
                weight = tl.where(up, q, weight)
            high = tl.where(up, x, high)
            mass += tl.where(absent, 0.0, q)
        return high, weight, other, mass


@triton.jit
def pass_over(ratio, top, x_row, q_row, n, BLOCK: tl.constexpr, Q: tl.constexpr):
    """The sums of `evaluate` over a row in memory."""
    lanes = tl.arange(0, BLOCK)
    p = tl.zeros([BLOCK], REAL)
    w = tl.zeros([BLOCK], REAL)
    second = tl.zeros([BLOCK], REAL)
    third = tl.zeros([BLOCK], REAL)
    for start in tl.range(0, n, BLOCK, num_stages=STAGES):
        gap = top - load_row(x_row, start + lanes, n, float("-inf"))
        parts = evaluate(ratio, gap, load_measure(q_row, start + lanes, n, Q))
        p += parts[0]
        w += parts[1]
        if not STEEP:
            second += parts[2]
            third += parts[3]
    return total(p, w, second, third)


@triton.jit
def find_root(x_row, q_row, n, BLOCK: tl.constexpr, WHOLE: tl.constexpr, Q: tl.constexpr):
    """U, the step in v that is left to make, the top score, the measure of a row, and the scores of lanes."""
    scores, weight, other, lane_mass = summarise(x_row, q_row, n, BLOCK, WHOLE, Q)
    top = tl.max(scores)
    gap = top - scores
    measure = tl.sum(lane_mass)
    if CLOSED:
        ratio = 1.0 / tl.sum(shift(weight, gap))
        rest = ratio * 0.0
    else:
        least = 1.0 / measure
        most = 1.0 / tl.sum(tl.where(gap == 0, weight, 0.0))
        low, high, ratio = least, most, most
        rest = ratio * 0.0
        step = 0
        going = ratio > 0
        while going:
            p, w, second, third = evaluate(ratio, gap, weight)
            if not (WHOLE or SPARSE):
                p2, w2, second2, third2 = evaluate(ratio, top - other, lane_mass - weight)
                p, w, second, third = p + p2, w + w2, second + second2, third + third2
            mass, slope, bent, third_sum = total(p, w, second, third)
            rest = last_step(mass, slope, bent, third_sum)
            ratio, low, high, going = advance(ratio, low, high, mass, slope, step)
            step += 1
        if not WHOLE:
            going = ratio > 0
            if SPARSE:
                going = tl.max(shift(ratio, top - other - rest)) > 0
            low, high, step = least, most, 0
            while going:
                mass, slope, bent, third_sum = pass_over(ratio, top, x_row, q_row, n, BLOCK, Q)
                rest = last_step(mass, slope, bent, third_sum)
                ratio, low, high, going = advance(ratio, low, high, mass, slope, step)
                step += 1
    return ratio, rest, top, measure, scores


@triton.jit
def conjugate(u):
    alive = u > 0
    return tl.where(alive, conjugate_of_ratio(tl.where(alive, u, 1.0)), u)


@triton.jit
def solve_rows(
    x,
    x_stride,
    q,
    q_stride,
    n,
    target,
    smoothing,
    out,
    out_stride,
    value,
    threshold,
    tops,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    Q: tl.constexpr,
    HARD: tl.constexpr,
    SMOOTH: tl.constexpr,
    STORE: tl.constexpr,
    VALUE: tl.constexpr,
):
    """One row: p, value - top, τ - top and top; where HARD, the loss in place of the value, p - y of p."""
    row = tl.program_id(0).to(tl.int64)  # offsets may exceed 2^31
    out_row = out + row * out_stride
    if HARD:
        label = tl.load(target + row)
        counts = label >= 0
    else:
        counts = row >= 0
    if counts:
        x_row = x + row * x_stride
        q_row = q + row * q_stride
        if HARD:
            labelled = tl.load(x_row + label, mask=label < n, other=float("nan")).to(REAL)
        ratio, rest, top, measure, scores = find_root(x_row, q_row, n, BLOCK, WHOLE, Q)
        found = tl.zeros([BLOCK], REAL)
        spread = tl.zeros([BLOCK], REAL)
        lanes = tl.arange(0, BLOCK)
        for start in tl.range(0, BLOCK if WHOLE else n, BLOCK, num_stages=STAGES):
            columns = start + lanes
            if not WHOLE:
                scores = load_row(x_row, columns, n, float("-inf"))
            gap = top - scores
            # The clamp of a sparse record would turn NaN into 0.
            u = tl.where(gap == gap, shift(ratio, gap - rest), gap)
            measures = load_measure(q_row, columns, n, Q)
            p = measures * u
            if VALUE and not CLOSED:
                found += measures * conjugate(u)
            if SMOOTH:
                present = scores != float("-inf")
                spread += tl.where(present, gap, 0.0)
                p = tl.where(present, p - smoothing / measure, p)
            if STORE:
                if HARD:
                    p = tl.where(columns == label, p - (1.0 - smoothing), p)
                tl.store(out_row + columns, p.to(tl.float32).to(out.dtype.element_ty), mask=columns < n)
        v_top = derivative(ratio) + rest
        # f* of the CLOSED is linear in p
        result = (conjugate_of_ratio(ratio * 0.0 + 1.0) if CLOSED else tl.sum(found)) - v_top
        if HARD:
            cost = top - labelled
            if SMOOTH:
                cost = (1.0 - smoothing) * cost + smoothing * (tl.sum(spread) / measure)
            result += cost
        else:
            tl.store(threshold + row, (-v_top).to(tl.float32))
            tl.store(tops + row, top.to(tl.float32))
        tl.store(value + row, result.to(tl.float32))
    else:
        tl.store(value + row, 0.0)
        if STORE:
            lanes = tl.arange(0, BLOCK)
            for start in tl.range(0, n, BLOCK, num_stages=STAGES):
                columns = start + lanes
                zeros = tl.zeros([BLOCK], out.dtype.element_ty)
                tl.store(out_row + columns, zeros, mask=columns < n)
