"""Pictures, and the training, that pruned CIFAR-10 networks recover with."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from mmprune.datasets import CIFAR
from mmprune.models.imitation import Term

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
TERM = Term(loss='kl', temperature=4.0, weight=1.0)
BATCH = 64


class Pictures:
    """The pictures in memory, ready for the networks."""

    def __init__(self, root: Path) -> None:
        folders = [root / 'cifar10_jpeg', root / 'cifar10_lossless']
        self.train = self._read(folders, 'trainval')
        self.test = self._read(folders, 'test')

    def _read(self, folders: list[Path], split: str) -> tuple[Tensor, Tensor]:
        sets = [CIFAR('cifar10', str(f), split) for f in folders]
        pictures = torch.cat([torch.from_numpy(s.images) for s in sets])
        labels = torch.tensor([label for s in sets for label in s.labels])
        pictures = pictures.permute(0, 3, 1, 2).float() / 255
        return (pictures - MEAN) / STD, labels

    def batches(self, count: int, augment: bool) -> Iterator[tuple]:
        """Yields training batches, the same ones for every model."""
        draw = torch.Generator().manual_seed(0)
        pictures, labels = self.train
        order = torch.empty(0, dtype=torch.long)
        for _ in range(count):
            if len(order) < BATCH:
                order = torch.randperm(len(labels), generator=draw)
            index, order = order[:BATCH], order[BATCH:]
            batch = pictures[index]
            if augment:
                batch = _augmented(batch, draw)
            yield batch, labels[index]


def _augmented(batch: Tensor, draw: torch.Generator) -> Tensor:
    """Mirrored by chance, and shifted by up to 4 pixels."""
    mirrored = torch.rand(len(batch), generator=draw) < 0.5
    batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(3), batch)
    padded = nn.functional.pad(batch, (4, 4, 4, 4))
    places = torch.randint(0, 9, (len(batch), 2), generator=draw).tolist()
    return torch.stack(
        [
            picture[:, y : y + 32, x : x + 32]
            for picture, (y, x) in zip(padded, places, strict=True)
        ]
    )


class Recovery:
    """The training of every pruned network: the same batches each time."""

    def __init__(self, pictures: Pictures, iters: int, lr: float) -> None:
        # A seventh faster on a CPU than channels first.
        self.batches = [
            (batch.contiguous(memory_format=torch.channels_last), labels)
            for batch, labels in pictures.batches(iters, augment=True)
        ]
        self.lr = lr

    @cache  # noqa: B019 of two networks
    def taught(self, teacher: nn.Module) -> list[Tensor]:
        """What a teacher says of the batches; it is asked once."""
        with torch.no_grad():
            return [teacher(batch) for batch, _ in self.batches]

    def __call__(self, model: nn.Module, teacher: nn.Module | None) -> None:
        """Trains a pruned model for a short time, in place."""
        model.train().requires_grad_(True)
        model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            model.parameters(), self.lr, momentum=0.9, weight_decay=1e-4
        )
        steps = len(self.batches)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for number, (batch, labels) in enumerate(self.batches):
            scores = model(batch)
            loss = nn.functional.cross_entropy(scores, labels)
            if teacher is not None:
                loss = loss + TERM(scores, self.taught(teacher)[number])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
