"""A stage that goes on from other weights refuses to start without."""

import pytest
import torch
from tiny_training import TinyMLP, config, run

HINT = '--load-from work_dirs/first/epoch_1.pth'
HOOK = dict(type='mmprune.NeededWeightsHook', hint=HINT)


def test_a_runner_without_weights_refuses(tmp_path):
    with pytest.raises(ValueError, match='none were given; add --load-from w'):
        run(config(tmp_path, custom_hooks=[HOOK]))


def test_a_runner_with_weights_trains_and_goes_on(tmp_path):
    start = tmp_path / 'start.pth'
    torch.save(dict(meta={}, state_dict=TinyMLP().state_dict()), start)
    first = run(config(tmp_path, custom_hooks=[HOOK], load_from=str(start)))
    again = run(config(tmp_path, custom_hooks=[HOOK], resume=True))
    assert first.iter == again.iter > 0
