"""Smaller budgets of a rung: thresholds above which only its weightiest interventions lie."""

from collections.abc import Sequence

import numpy as np

from howwhen.records import HybridTrace

SHARES = (0.05, 0.1, 0.2, 0.4, 0.7)
"""Shares of the full rung's interventions."""
BUDGETS_FILE = "budgets.json"
"""File with the thresholds of every rung, by share."""


def budget_thresholds(traces: Sequence[HybridTrace]) -> dict[float, float]:
    """Thresholds at or above which so many of a rung's interventions lie, by share.

    Of the self-gate they are log-odds, of others the divergence of the two models, in bits. A rung
    with a threshold writes other texts than the full one, so that its own share may be another.

    Args:
        traces: of the full rung, with what it notes.
    """
    is_gated = any(trace.rung == "self-gate" for trace in traces)
    weights = [
        token.log_odds if is_gated else token.divergence
        for trace in traces
        for token in trace.tokens
        if token.is_decision
    ]
    known = [weight for weight in weights if weight is not None]
    if not known:
        return {}
    # One of the weights, so that it is reached; the traces hold few digits of each.
    found = np.quantile(known, [1 - share for share in SHARES], method="higher")
    return {share: float(weight) for share, weight in zip(SHARES, found, strict=True)}
