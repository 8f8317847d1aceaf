"""Grid masks on training pictures: those of the original, seed by seed."""

import numpy as np
import pytest
import torch

from projects.VAD.model.grid_mask import GridMask, _stripes


def test_grid_mask_keeps_stripes_and_drops_squares_in_training_only():
    mask = GridMask(prob=1.0)
    pictures = torch.ones(2, 3, 40, 60)
    np.random.seed(3)
    kept = mask.train()(pictures)
    assert torch.equal(kept[0, 0], kept[1, 2])
    fraction = kept.mean().item()
    assert 0.6 < fraction < 0.95
    rows = kept[0, 0].amin(1)
    columns = kept[0, 0].amin(0)
    stripes = (rows[:, None] + columns[None]).clamp(max=1)
    assert torch.equal(stripes, kept[0, 0])
    assert mask.eval()(pictures) is pictures
    never = GridMask(prob=0.0).train()
    assert never(pictures) is pictures
    with pytest.raises(ValueError, match='no probability'):
        GridMask(prob=1.5)


def grid_mask_by_loops(seed, height, width):
    """What VAD draws and keeps, stripe by stripe on its canvas."""
    rng = np.random.RandomState(seed)
    keep = np.zeros((height * 3 // 2, width * 3 // 2), bool)
    if rng.rand() > 0.7:
        return np.ones((height, width), bool)
    period = rng.randint(2, height)
    stripe = min(max(int(period / 2 + 0.5), 1), period - 1)
    top, left = rng.randint(period), rng.randint(period)
    for k in range(len(keep) // period):
        keep[top + k * period : top + k * period + stripe] = True
    for k in range(keep.shape[1] // period):
        keep[:, left + k * period : left + k * period + stripe] = True
    y, x = (len(keep) - height) // 2, (keep.shape[1] - width) // 2
    return keep[y : y + height, x : x + width]


@pytest.mark.parametrize('size', [(384, 640), (40, 60)])
def test_a_seed_gives_the_grid_masks_of_the_original(size):
    mask = GridMask().train()
    for seed in range(60):
        np.random.seed(seed)
        kept = mask(torch.ones(1, 1, *size))[0, 0].bool().numpy()
        assert (kept == grid_mask_by_loops(seed, *size)).all(), seed


def test_no_stripe_begins_before_the_first_one():
    """Canvas of 30, picture from 5 on; the stripe is 18 to 27 of it.

    A period earlier it would be -1 to 8: there is none.
    """
    stripes = _stripes(20, period=19, stripe=10, first=18)
    assert stripes.nonzero()[0].tolist() == list(range(13, 20))


def test_evaluation_draws_one_number_as_the_original_does():
    np.random.seed(0)
    GridMask().eval()(torch.ones(1, 1, 8, 8))
    after = np.random.rand()
    np.random.seed(0)
    assert after == np.random.rand(2)[1]
