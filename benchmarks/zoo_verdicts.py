"""What a family of the zoo goes through, and when it has passed."""

STAGES = ('build', 'prune', 'reload', 'train', 'export', 'torch_pruning')
# Without these a family is no success; the last is the peer's.
OURS = ('build', 'prune', 'reload', 'train')
# What was found by other rules is found anew: count up when a stage changes
# what it does or asks.
RULES = 5
LEAST = 0.25  # of the prunable parameters that 30% of the units must hold


def success(state: dict) -> bool:
    """Whether all of our stages went through.

    The export only has to where the dense model exports.
    """
    stages = state['stages']
    exports = stages.get('export', '-')
    return all(stages.get(stage) == 'ok' for stage in OURS) and (
        exports == 'ok' or exports.startswith('-')
    )


def least(ratio: float) -> float:
    """The fraction of the prunable parameters that has to go."""
    return LEAST * ratio / 0.3


def own_seconds(state: dict) -> float:
    return sum(v for k, v in state['seconds'].items() if k != 'torch_pruning')
