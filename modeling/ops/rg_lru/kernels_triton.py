"""RG-LRU as Triton kernels: gates and scan of a block of channels of one sequence in one program, tile by tile of time.

A tile's recurrence is an associative scan, and its last state goes on to the next tile. The backward runs from the last
tile to the first and computes the gates again.
"""

import triton
import triton.language as tl

from recurrent_gemma.modeling.ops.triton import sequence_page, sequence_span


@triton.jit
def _compose(a, x, later_a, later_x):
    """h -> later_a (a h + x) + later_x."""
    return a * later_a, later_a * x + later_x


@triton.jit
def _gates(input_gate, recurrence_gate, rate, start, is_valid):
    """Opened gates, a and the multiplier of a tile; a = 0 and multiplier 1 at starts, a = 1 at pads."""
    i = tl.sigmoid(input_gate)
    r = tl.sigmoid(recurrence_gate)
    y = 2.0 * r * rate
    # -expm1(y): the series where 1 - exp(y) would cancel, with a remainder below 2^-24 of it.
    series = 1.0 + y * (1.0 / 9.0)
    for n in tl.static_range(8, 1, -1):
        series = 1.0 + y * (1.0 / n) * series
    squared = tl.where(y > -0.5, -y * series, 1.0 - tl.exp(y))
    a = tl.where(start, 0.0, tl.exp(r * rate))
    multiplier = tl.where(start, 1.0, tl.sqrt(squared))
    return i, r, tl.where(is_valid, a, 1.0), multiplier


@triton.jit
def _markers(starts, valid, begin, step, count, opening, has_starts: tl.constexpr, has_valid: tl.constexpr):
    """Which steps (T, 1) of a tile start a document, and which are tokens; steps beyond the end are none.

    ``opening`` is the step that starts a document whatever ``starts`` says, -1 for none.
    """
    inside = step < count
    is_valid = inside
    if has_valid:
        is_valid = inside & (tl.load(valid + begin + step, mask=inside, other=0) != 0)
    start = inside & (step == opening)
    if has_starts:
        start = is_valid & (tl.load(starts + begin + step, mask=inside, other=0) != 0)
    return start[:, None], is_valid[:, None]


@triton.jit
def _opening_step(initial, has_h0: tl.constexpr, is_packed: tl.constexpr):
    """The step at which a sequence starts a document by itself: the first of packed ones without a state, else -1."""
    opening = -1
    if is_packed:
        opening = 0
        if has_h0:
            opening = tl.where(initial, -1, 0)
    return opening


@triton.jit
def _load_tile(
    x_ptr,
    input_gate_ptr,
    recurrence_gate_ptr,
    rate,
    starts_ptr,
    valid_ptr,
    begin,
    step,
    count,
    opening,
    channel,
    width,
    has_starts: tl.constexpr,
    has_valid: tl.constexpr,
):
    """Place, mask and inputs of a tile, its markers and its gates."""
    mask = (step < count)[:, None] & (channel < width)[None, :]
    place = (begin + step)[:, None] * width + channel[None, :]
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    input_gate = tl.load(input_gate_ptr + place, mask=mask, other=0.0).to(tl.float32)
    recurrence_gate = tl.load(recurrence_gate_ptr + place, mask=mask, other=0.0).to(tl.float32)
    start, is_valid = _markers(starts_ptr, valid_ptr, begin, step, count, opening, has_starts, has_valid)
    i, r, a, multiplier = _gates(input_gate, recurrence_gate, rate[None, :], start, is_valid)
    return place, mask, x, start, is_valid, i, r, a, multiplier


@triton.jit
def forward_kernel(
    x_ptr,
    input_gate_ptr,
    recurrence_gate_ptr,
    rate_ptr,
    h0_ptr,
    starts_ptr,
    valid_ptr,
    cu_seqlens_ptr,
    has_initial_ptr,
    slots_ptr,
    states_ptr,
    last_ptr,
    sequences,
    tokens,
    length,
    width,
    page_stride,
    channel_stride,
    has_h0: tl.constexpr,
    has_starts: tl.constexpr,
    has_valid: tl.constexpr,
    is_packed: tl.constexpr,
    has_flags: tl.constexpr,
    has_slots: tl.constexpr,
    steps: tl.constexpr,
    channels: tl.constexpr,
):
    channel = tl.program_id(0) * channels + tl.arange(0, channels)
    sequence = tl.program_id(1).to(tl.int64)
    rate = tl.load(rate_ptr + channel, mask=channel < width, other=0.0)
    begin, end = sequence_span(cu_seqlens_ptr, sequence, sequences, length, tokens, is_packed)
    page, initial = sequence_page(slots_ptr, has_initial_ptr, sequence, sequences, has_slots, has_flags)
    count = end - begin
    opening = _opening_step(initial, has_h0, is_packed)
    # h0 and the last states lie alike; with slots they are the same pages.
    place_state = page * page_stride + channel * channel_stride
    carry = tl.zeros([channels], dtype=tl.float32)
    if has_h0:
        carry = tl.load(h0_ptr + place_state, mask=channel < tl.where(initial, width, 0), other=0.0).to(tl.float32)
    for first in range(0, count, steps):
        step = tl.arange(0, steps)
        place, mask, x, _, is_valid, i, _, a, multiplier = _load_tile(
            x_ptr,
            input_gate_ptr,
            recurrence_gate_ptr,
            rate,
            starts_ptr,
            valid_ptr,
            begin,
            first + step,
            count,
            opening,
            channel,
            width,
            has_starts,
            has_valid,
        )
        inputs = tl.where(is_valid, multiplier * i * x, 0.0)
        product, h = tl.associative_scan((a, inputs), 0, _compose)
        h += product * carry[None, :]
        # Steps beyond the end pass the state on.
        carry = tl.sum(tl.where((step == steps - 1)[:, None], h, 0.0), axis=0)
        if has_slots:
            h = tl.where(page > 0, h, 0.0)
        tl.store(states_ptr + place, h.to(states_ptr.dtype.element_ty), mask=mask)
    kept = width
    if has_slots:
        kept = tl.where((page > 0) & (count > 0), width, 0)
        tl.debug_barrier()  # all of the old state is read before any of it is overwritten
    tl.store(last_ptr + place_state, carry, mask=channel < kept)


@triton.jit
def backward_kernel(
    grad_states_ptr,
    grad_last_ptr,
    x_ptr,
    input_gate_ptr,
    recurrence_gate_ptr,
    rate_ptr,
    h0_ptr,
    starts_ptr,
    valid_ptr,
    cu_seqlens_ptr,
    has_initial_ptr,
    states_ptr,
    grad_x_ptr,
    grad_input_gate_ptr,
    grad_recurrence_gate_ptr,
    grad_rate_ptr,
    grad_h0_ptr,
    sequences,
    tokens,
    length,
    width,
    has_h0: tl.constexpr,
    has_starts: tl.constexpr,
    has_valid: tl.constexpr,
    is_packed: tl.constexpr,
    has_flags: tl.constexpr,
    least_multiplier: tl.constexpr,
    steps: tl.constexpr,
    channels: tl.constexpr,
):
    channel = tl.program_id(0) * channels + tl.arange(0, channels)
    sequence = tl.program_id(1).to(tl.int64)
    in_width = channel < width
    rate = tl.load(rate_ptr + channel, mask=in_width, other=0.0)
    begin, end = sequence_span(cu_seqlens_ptr, sequence, sequences, length, tokens, is_packed)
    page, initial = sequence_page(None, has_initial_ptr, sequence, sequences, False, has_flags)
    count = end - begin
    opening = _opening_step(initial, has_h0, is_packed)
    place_state = page * width + channel
    with_state = channel < tl.where(initial, width, 0)
    grad_rate = tl.zeros([channels], dtype=tl.float32)
    first_a = tl.zeros([channels], dtype=tl.float32) + 1.0  # an empty sequence passes its state on
    # The gradient of h_t arrives through a_{t+1}; at the last step it is the last state's own.
    carry = tl.load(grad_last_ptr + place_state, mask=in_width, other=0.0)
    tiles = tl.cdiv(count, steps)
    for tile in range(tiles):
        index = tl.arange(0, steps)
        step = (tiles - 1 - tile) * steps + index
        place, mask, x, start, is_valid, i, r, a, multiplier = _load_tile(
            x_ptr,
            input_gate_ptr,
            recurrence_gate_ptr,
            rate,
            starts_ptr,
            valid_ptr,
            begin,
            step,
            count,
            opening,
            channel,
            width,
            has_starts,
            has_valid,
        )

        # a of the next step; beyond the end 1, for the last state's gradient.
        next_mask = (step + 1 < count)[:, None] & in_width[None, :]
        next_gate = tl.load(recurrence_gate_ptr + place + width, mask=next_mask, other=0.0).to(tl.float32)
        next_start, next_valid = _markers(starts_ptr, valid_ptr, begin, step + 1, count, opening, has_starts, has_valid)
        next_a = tl.where(next_start, 0.0, tl.exp(tl.sigmoid(next_gate) * rate[None, :]))
        next_a = tl.where(next_valid, next_a, 1.0)

        grad = tl.load(grad_states_ptr + place, mask=mask, other=0.0).to(tl.float32)
        product, grad_h = tl.associative_scan((next_a, grad), 0, _compose, reverse=True)
        grad_h += product * carry[None, :]
        carry = tl.sum(tl.where((index == 0)[:, None], grad_h, 0.0), axis=0)

        earlier = mask & (step > 0)[:, None]
        previous = tl.load(states_ptr + place - width, mask=earlier, other=0.0).to(tl.float32)
        if has_h0:
            h0 = tl.load(h0_ptr + place_state, mask=with_state, other=0.0).to(tl.float32)
            previous = tl.where((step == 0)[:, None], h0[None, :], previous)
        grad_log_a = grad_h * previous * a

        token_grad = tl.where(is_valid, grad_h, 0.0)
        tl.store(grad_x_ptr + place, (token_grad * i * multiplier).to(grad_x_ptr.dtype.element_ty), mask=mask)
        grad_multiplier = token_grad * x * i
        grad_input_gate = grad_multiplier * multiplier * (1.0 - i)
        tl.store(grad_input_gate_ptr + place, grad_input_gate.to(grad_input_gate_ptr.dtype.element_ty), mask=mask)
        # d multiplier / d log a = -a^2 / sqrt(1 - a^2)
        grad_log_a -= grad_multiplier * a * a / tl.maximum(multiplier, least_multiplier)
        grad_log_a = tl.where(start | (is_valid == 0), 0.0, grad_log_a) * r
        grad_rate += tl.sum(grad_log_a, axis=0)
        grad_recurrence_gate = grad_log_a * rate[None, :] * (1.0 - r)
        tl.store(
            grad_recurrence_gate_ptr + place,
            grad_recurrence_gate.to(grad_recurrence_gate_ptr.dtype.element_ty),
            mask=mask,
        )
        first_a = tl.sum(tl.where((index == 0)[:, None], a, 0.0), axis=0)
    tl.store(grad_h0_ptr + place_state, tl.where(with_state, carry * first_a, 0.0), mask=in_width)
    tl.store(grad_rate_ptr + place_state, grad_rate, mask=in_width)
