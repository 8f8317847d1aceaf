"""How much goes in each round, and how hard it is pulled: numbers only."""

import math

from ..allocation import round_half_up

# Cumulative sparsity after pruning event k of K events that end at R.
RATE_SCHEDULES = {
    'geometric': lambda final, k, last: 1 - (1 - final) ** (k / last),
    'constant': lambda final, k, last: final,
    'per_round': lambda final, k, last: 1 - (1 - final) ** k,
    'linear': lambda final, k, last: final * k / last,
    'cubic': lambda final, k, last: final * (1 - (1 - k / last) ** 3),
}
_STRENGTHS = {
    'x': lambda t, p: t,
    'x^2': lambda t, p: t**2,
    'x^3': lambda t, p: t**3,
    'exp': lambda t, p: (math.exp(t) - 1) / (math.e - 1),
    'exp_custom': lambda t, p: (math.exp(t) - 1) / (math.e - 1),
    'exp_custom_exponents': lambda t, p: (math.exp(t**p) - 1) / (math.e - 1),
}
PENALTY_SCHEDULES = tuple(_STRENGTHS)


def cumulative_sparsity(
    final: float, event: int, events: int, schedule: str = 'geometric'
) -> float:
    r"""Returns the fraction that is gone after a pruning event.

    With R the final fraction, k the event and K the number of events:
    geometric :math:`1-(1-R)^{k/K}` (every event takes the same part of the
    survivors), constant :math:`R`, per_round :math:`1-(1-R)^k`, linear
    :math:`Rk/K`, cubic :math:`R(1-(1-k/K)^3)` (Zhu and Gupta, 2017).

    Args:
        final: R, in ``[0, 1)``; with ``per_round`` what each event takes of
            the survivors.
        event: k, from 0 (nothing gone yet) to ``events``.
        events: K, one less than the number of training rounds.
        schedule: A key of :data:`RATE_SCHEDULES`.
    """
    if event == 0:
        return 0.0
    if event == events and schedule != 'per_round':
        return final  # the powers above would round
    return RATE_SCHEDULES[schedule](final, event, events)


def num_gone(sparsity: float, total: int, fillback_rate: float = 0.0) -> int:
    """Returns how many of ``total`` units are gone at a sparsity."""
    return fill_back(round_half_up(sparsity * total), fillback_rate)


def fill_back(dropped: int, fillback_rate: float) -> int:
    """Returns how many units stay gone when a part of them comes back.

    Args:
        dropped: Units that the schedule drops.
        fillback_rate: Fraction of them that is kept after all; 0 keeps none,
            1 prunes nothing.
    """
    # 0.29 * 100 is 28.999999999999996.
    return dropped - math.floor(fillback_rate * dropped + 1e-9)


def units_of_elements(
    alive: int, per_unit: int, size: int, fillback_rate: float = 0.0
) -> int:
    """Returns how many of a layer's units the alive elements would fill.

    With c = alive / per_unit the answer is ``floor(c + (size - c) * f)``;
    Refill of "Coarsening the Granularity" (arXiv 2202.04736).

    Args:
        alive: Elements of the layer that an element-wise pruning keeps.
        per_unit: Elements of one unit.
        size: Units of the layer.
        fillback_rate: f.
    """
    full = alive / per_unit
    return math.floor(full + (size - full) * fillback_rate + 1e-9)


def penalty_strength(
    schedule: str, progress: float, final: float, exponent: float = 4
) -> float:
    r"""Returns the strength :math:`\lambda(t)` of RSST's penalty.

    With g the final value and p the exponent: ``x`` :math:`gt`, ``x^2``
    :math:`gt^2`, ``x^3`` :math:`gt^3`, ``exp`` and ``exp_custom``
    :math:`g(e^t-1)/(e-1)`, ``exp_custom_exponents``
    :math:`g(e^{t^p}-1)/(e-1)`. All rise from 0 to g.

    Args:
        schedule: One of :data:`PENALTY_SCHEDULES`.
        progress: t, in ``[0, 1]``.
        final: g.
        exponent: p; only the last schedule uses it.
    """
    return final * _STRENGTHS[schedule](progress, exponent)
