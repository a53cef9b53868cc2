# ruff: noqa: F821
# mypy: ignore-errors
"""The gradient of f-softargmax in the scores. This file is text, like solver.py, which comes before it."""


@triton.jit
def weigh(p, q):
    alive = p > 0
    return tl.where(alive, p * elasticity(tl.where(alive, p / q, 1.0)), 0.0)


@triton.jit
def differentiate_rows(
    p,
    p_stride,
    q,
    q_stride,
    n,
    grad_p,
    grad_p_stride,
    grad_value,
    grad_threshold,
    out,
    out_stride,
    BLOCK: tl.constexpr,
    Q: tl.constexpr,
    GRAD_P: tl.constexpr,
    GRAD_VALUE: tl.constexpr,
    GRAD_THRESHOLD: tl.constexpr,
):
    """w (g_p - <ρ, g_p>) + p g_value + ρ g_threshold of one row, with ρ = w / Σw."""
    row = tl.program_id(0).to(tl.int64)
    p_row = p + row * p_stride
    q_row = q + row * q_stride
    given_row = grad_p + row * grad_p_stride
    out_row = out + row * out_stride
    lanes = tl.arange(0, BLOCK)
    # By Σw from the first pass; 0 where nothing depends on it.
    level = tl.zeros([1], REAL)
    if GRAD_P or GRAD_THRESHOLD:
        mass = tl.zeros([BLOCK], REAL)
        moment = tl.zeros([BLOCK], REAL)
        for start in tl.range(0, n, BLOCK, num_stages=STAGES):
            columns = start + lanes
            w = weigh(load_row(p_row, columns, n, 0.0), load_measure(q_row, columns, n, Q))
            mass += w
            if GRAD_P:
                moment += w * load_row(given_row, columns, n, 0.0)
        level -= tl.sum(moment)
        if GRAD_THRESHOLD:
            level += tl.load(grad_threshold + row)
        level /= tl.sum(mass)
    for start in tl.range(0, n, BLOCK, num_stages=STAGES):
        columns = start + lanes
        probability = load_row(p_row, columns, n, 0.0)
        found = tl.zeros([BLOCK], REAL)
        if GRAD_P or GRAD_THRESHOLD:
            gradient = level
            if GRAD_P:
                gradient = gradient + load_row(given_row, columns, n, 0.0)
            found += weigh(probability, load_measure(q_row, columns, n, Q)) * gradient
        if GRAD_VALUE:
            found += probability * tl.load(grad_value + row)
        tl.store(out_row + columns, found.to(tl.float32).to(out.dtype.element_ty), mask=columns < n)
