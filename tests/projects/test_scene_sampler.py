"""Whole scenes to each process, and the same numbers on two as on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mmprune  # noqa: E402, F401, I001  (first: it makes mmcv-lite usable)
from mmdet3d.structures import (  # noqa: E402
    Det3DDataSample,
    LiDARInstance3DBoxes,
)
from mmengine.dataset import BaseDataset  # noqa: E402
from mmengine.evaluator import Evaluator  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmengine.structures import BaseDataElement, InstanceData  # noqa: E402

from projects.VAD.data import scene_sampler  # noqa: E402
from projects.VAD.metrics import VADMetric  # noqa: E402
from projects.VAD.data.scene_sampler import (  # noqa: E402
    SceneSampler,
    scenes_of,
    share_out,
)

SCENES = [('long', 9), ('short', 2), ('middle', 3)]
COUNT = 14


class Frames(BaseDataset):
    """Frames of named scenes; each keeps its number."""

    def __init__(self, scenes, key='scene_token'):
        self.scenes, self.key = scenes, key
        super().__init__(serialize_data=bool(scenes))

    def load_data_list(self):
        frames = [(s, i) for s, n in self.scenes for i in range(n)]
        return [
            {self.key: scene, 'token': f'{scene}{i}', 'timestamp': number}
            for number, (scene, i) in enumerate(frames)
        ]


class CountsFrames:
    """Its plan drifts with each frame that it remembers of the scene."""

    def __init__(self):
        self.scene, self.count = None, 0

    def __call__(self, frame):
        if frame['scene_token'] != self.scene:
            self.scene, self.count = frame['scene_token'], 0
        self.count += 1
        return predicted(frame, 0.02 * self.count**2)


def predicted(frame, drift):
    """A car and an ego, both found beside the truth by the drift."""
    out = Det3DDataSample(metainfo=frame)
    box = torch.tensor([[1.0, 9, -1, 4, 2, 1.5, 0.3, 0, 0]])
    label = torch.zeros(1, dtype=torch.int64)
    out.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(box, box_dim=9), labels_3d=label
    )
    box = box + torch.tensor([drift, *[0.0] * 8])
    out.pred_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(box, box_dim=9),
        labels_3d=label,
        scores_3d=torch.tensor([0.5]),  # all equal: their order matters
    )
    steps = torch.tensor([[0.0, 1.0]]).repeat(6, 1)
    out.gt_ego = BaseDataElement(
        fut_trajs=steps,
        fut_masks=torch.ones(6),
        fut_cmd=torch.tensor([1.0, 0, 0]),
        his_trajs=torch.tensor([[0.0, 1.1]] * 2),
    )
    out.pred_ego = BaseDataElement(plans=(steps.cumsum(0) + drift)[None])
    return out


def evaluate(num_workers=0):
    """The metrics of this process, as mmengine's test loop gets them.

    Args:
        num_workers: Processes that compute them, on each rank.
    """
    dataset = Frames(SCENES)
    loader = Runner.build_dataloader(
        dict(
            batch_size=1,
            num_workers=0,
            sampler=dict(type='mmdet3d.SceneSampler', shuffle=False),
            dataset=dataset,
            collate_fn=lambda frames: frames[0],
        )
    )
    model = CountsFrames()
    evaluator = Evaluator(VADMetric(num_workers=num_workers))
    for frame in loader:
        evaluator.process([model(frame)])
    return evaluator.evaluate(len(dataset))


def on(monkeypatch, rank, world_size):
    monkeypatch.setattr(
        scene_sampler, 'get_dist_info', lambda: (rank, world_size)
    )


def test_two_processes_give_the_numbers_of_one(tmp_path):
    single = evaluate()
    assert 0 < single['VAD/bev_center_ap'] < 1
    out = tmp_path / 'two.json'
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'torch.distributed.run', '--standalone'),
            *('--nproc-per-node', '2', __file__, str(out)),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(out.read_text()) == [single, single]


def test_one_process_sees_the_dataset_in_order():
    sampler = SceneSampler(Frames(SCENES), seed=3)
    sampler.set_epoch(4)
    assert list(sampler) == list(range(COUNT)) and len(sampler) == COUNT


@pytest.mark.parametrize('world_size', [2, 3, 4, 6])
def test_ranks_have_whole_scenes_and_equally_many(monkeypatch, world_size):
    dataset = Frames(SCENES)
    scenes = [list(scene) for scene in scenes_of(dataset)]
    shares = []
    for rank in range(world_size):
        on(monkeypatch, rank, world_size)
        shares.append(list(SceneSampler(dataset)))
    assert len({len(share) for share in shares}) == 1
    assert {i for share in shares for i in share} == set(range(COUNT))
    for scene in scenes:
        whole = [
            scene == share[i : i + len(scene)]
            for share in shares
            for i in range(len(share))
        ]
        assert any(whole)


def test_the_longest_scene_goes_where_least_is():
    assert share_out([7, 2, 4, 5], 2) == [[0, 1], [2, 3]]
    assert share_out([7, 2, 4, 5], 3) == [[0], [3], [1, 2]]
    assert share_out([3], 2) == [[0], []]


def test_shares_are_filled_with_their_own_first_frames(monkeypatch):
    dataset = Frames([('a', 5), ('b', 2)])
    on(monkeypatch, 1, 2)
    assert list(SceneSampler(dataset)) == [5, 6, 5, 6, 5]
    on(monkeypatch, 2, 3)
    assert list(SceneSampler(dataset)) == [0, 1, 2, 3, 4]


def test_a_scene_that_comes_back_is_another_one():
    frames = Frames([('a', 1), ('b', 1), ('a', 1)])
    assert scenes_of(frames) == [range(1), range(1, 2), range(2, 3)]


def test_what_a_dataset_adds_to_a_frame_is_not_made():
    class Slow(Frames):
        def get_data_info(self, idx):
            raise AssertionError('cuts the map out')

    assert len(SceneSampler(Slow(SCENES))) == COUNT


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match='asked to shuffle'):
        SceneSampler(Frames(SCENES), shuffle=True)
    with pytest.raises(ValueError, match='empty Frames'):
        SceneSampler(Frames([]))
    with pytest.raises(KeyError, match='needs scene_token of frame 0'):
        SceneSampler(Frames(SCENES, key='sequence'))


if __name__ == '__main__':
    torch.distributed.init_process_group('gloo')
    both = [None, None]
    torch.distributed.all_gather_object(both, evaluate(num_workers=2))
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(both))
    torch.distributed.destroy_process_group()
