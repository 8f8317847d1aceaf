"""What an earlier plan removed stays removed."""

import torch
from torch import Tensor

from ..allocation import Keep
from ..plan import PruningPlan


def removed_units(before: PruningPlan | None) -> dict[str, list[int]]:
    """Returns the units that a plan removes, by group."""
    if before is None:
        return {}
    return {group.name: before.removed(group) for group in before.groups}


def removed_first(
    scores: dict[str, Tensor],
    before: PruningPlan,
    restart: dict[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Returns the scores; those of removed units lie below all others, or
    are what they would be after a restart."""
    scores = {name: score.clone() for name, score in scores.items()}
    for group in before.groups:
        score, units = scores.get(group.name), before.removed(group)
        if score is not None and restart is not None:
            score[units] = restart[group.name][units]
        elif score is not None:
            score[units] = torch.finfo(score.dtype).min
    return scores


def kept_before(keep: Keep, before: PruningPlan) -> Keep:
    """Returns the kept units that were kept before as well."""
    kept = {name: set(units) for name, units in before.keep.items()}
    return {
        name: [i for i in units if i in kept.get(name, units)]
        for name, units in keep.items()
    }
