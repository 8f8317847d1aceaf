"""Whole scenes to each process, for models that remember a frame."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

from mmdet3d.registry import DATA_SAMPLERS
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler


@DATA_SAMPLERS.register_module()
class SceneSampler(Sampler):
    """Gives whole scenes to the ranks, in order and about equally many frames.

    All ranks yield equally many indices: the shorter ones repeat theirs from
    the first on, a rank without a scene takes those of the whole dataset.
    ``VADMetric`` counts each frame once, so its numbers are those of one
    process. On one process the order is that of the dataset.

    Args:
        dataset: Its records have ``scene_token``; frames of one scene are
            neighbours.
        shuffle: Must be False; there because samplers are swapped by type.
        seed: Not used; the Runner passes it to every sampler.

    Raises:
        ValueError: If it is asked to shuffle, or the dataset is empty.
        KeyError: If a frame has no scene.
    """

    def __init__(
        self,
        dataset: BaseDataset,
        shuffle: bool = False,
        seed: int | None = None,
    ) -> None:
        del seed
        if shuffle:
            raise ValueError(
                'SceneSampler was asked to shuffle, but the model needs the '
                'frames of a scene in order; use DefaultSampler for training'
            )
        rank, world_size = get_dist_info()
        scenes = scenes_of(dataset)
        shares = share_out([len(scene) for scene in scenes], world_size)
        lengths = [sum(len(scenes[i]) for i in share) for share in shares]
        own = [index for i in shares[rank] for index in scenes[i]]
        self.indices = list(
            islice(cycle(own or range(len(dataset))), max(lengths))
        )

    def __iter__(self) -> Iterator[int]:
        """Iterates over the indices of this rank."""
        return iter(self.indices)

    def __len__(self) -> int:
        """Number of indices of this rank, equal on all."""
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: every epoch has the same order."""


def scenes_of(dataset: BaseDataset) -> list[range]:
    """Returns the indices of each run of frames of one scene.

    Raises:
        ValueError: If there is no frame.
        KeyError: If a frame has no ``scene_token``.
    """
    tokens = []
    for index in range(len(dataset)):
        # Not the subclass's own: it may cut the map out for each frame.
        info = BaseDataset.get_data_info(dataset, index)
        if 'scene_token' not in info:
            raise KeyError(
                f'SceneSampler needs scene_token of frame {index}, found '
                f'{sorted(info)}; use DefaultSampler for data without scenes'
            )
        tokens.append(info['scene_token'])
    if not tokens:
        raise ValueError(
            f'SceneSampler got an empty {type(dataset).__name__}; check its '
            'info file'
        )
    starts = [0] + [
        i for i in range(1, len(tokens)) if tokens[i] != tokens[i - 1]
    ]
    ends = [*starts[1:], len(tokens)]
    return [range(a, b) for a, b in zip(starts, ends, strict=True)]


def share_out(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Returns the scenes of each rank, in order.

    The longest scene that is left goes to the rank with the fewest frames.

    Args:
        lengths: Frames of each scene.
        num_ranks: Number of ranks.
    """
    shares = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for scene in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rank = loads.index(min(loads))
        shares[rank].append(scene)
        loads[rank] += lengths[scene]
    return [sorted(share) for share in shares]
