"""Where the blocks of a model are while they are pruned one by one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic_file import write_whole
from ..checkpoints.huggingface import (
    file_names,
    read_tensors,
    save_tensors,
    weight_files,
)

_PROGRESS = 'progress.json'


class Kept:
    """A folder that keeps finished blocks, so that a killed pass goes on.

    Args:
        folder: Where; made when the first block is finished.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows: list[dict] = []
        self.asked: dict = {}

    def file(self, number: int) -> Path:
        """Returns where a block is."""
        return self.folder / f'block-{number:05d}.safetensors'

    def finished(self, asked: Mapping[str, Any]) -> list[dict]:
        """Returns what is known of the blocks that are finished.

        Args:
            asked: What the pass does, as plain data.

        Raises:
            ValueError: If the folder is of a pass that did something else.
        """
        self.asked, self.rows = json.loads(json.dumps(asked)), []
        path = self.folder / _PROGRESS
        if path.is_file():
            found = json.loads(path.read_text())
            differ = [
                key
                for key in {**found['asked'], **self.asked}
                if found['asked'].get(key) != self.asked.get(key)
            ]
            if differ:
                raise ValueError(
                    f'{self.folder} holds the blocks of a pass with another '
                    f'{sorted(differ)[0]}; remove the folder, or ask for '
                    'what was asked for there'
                )
            self.rows = found['rows']
        return list(self.rows)

    def keep(self, number: int, tensors: dict[str, Tensor], row: dict) -> None:
        """Writes a finished block, and then that it is finished."""
        save_tensors(tensors, self.file(number))
        self.rows.append(row)
        text = json.dumps(dict(asked=self.asked, rows=self.rows), indent=1)
        write_whole(self.folder / _PROGRESS, text.encode())

    def read(self, number: int) -> dict[str, Tensor]:
        """Returns the tensors of a finished block, by name."""
        from safetensors.torch import load_file

        return load_file(self.file(number))

    def remove(self) -> None:
        """Removes the folder; the result is elsewhere by now."""
        for path in self.folder.glob('block-*.safetensors'):
            path.unlink()
        (self.folder / _PROGRESS).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


class MemoryStore:
    """Blocks that are in the model.

    Args:
        model: The model.
        paths: Of its blocks.
        device: Where a block is pruned.
        kept: Keeps finished blocks on disk too.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: list[str],
        device: str | torch.device = 'cpu',
        kept: Kept | None = None,
    ) -> None:
        self.blocks = [model.get_submodule(path) for path in paths]
        self.device, self.kept = torch.device(device), kept
        self._home: torch.device | None = None

    def finished(self, asked: Mapping[str, Any]) -> list[dict]:
        """Returns the rows of the blocks that need no pruning any more.

        Raises:
            ValueError: If what was kept is of another pass.
        """
        return self.kept.finished(asked) if self.kept else []

    def open(self, number: int) -> nn.Module:
        """Returns a block with its weights, on the device."""
        block = self.blocks[number]
        self._home = next(block.parameters()).device
        if self.kept and number < len(self.kept.rows):
            block.load_state_dict(self.kept.read(number))
        return block.to(self.device)

    def close(self, number: int, row: dict | None = None) -> None:
        """Puts a block back.

        Args:
            number: Which.
            row: What is known of it, if it is finished just now.
        """
        block = self.blocks[number].to(self._home)
        if row is not None and self.kept:
            self.kept.keep(number, dict(block.state_dict()), row)


class StreamedStore:
    """Blocks that are in the safetensors of a folder, and never all here.

    Args:
        model: The model, its blocks on the ``meta`` device.
        paths: Of its blocks.
        source: Folder of the dense model.
        kept: Where finished blocks go.
        device: Where a block is pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: list[str],
        source: str | Path,
        kept: Kept,
        device: str | torch.device = 'cpu',
    ) -> None:
        self.blocks = [model.get_submodule(path) for path in paths]
        self.paths, self.kept = paths, kept
        self.device = torch.device(device)
        self.files = weight_files(source)
        self.names = file_names(model, self.files)

    def finished(self, asked: Mapping[str, Any]) -> list[dict]:
        """Returns the rows of the blocks that need no pruning any more.

        Raises:
            ValueError: If what was kept is of another pass.
        """
        return self.kept.finished(asked)

    def open(self, number: int) -> nn.Module:
        """Returns a block with its weights, on the device."""
        block, names = self.blocks[number], self._names(number)
        files = self.files
        if number < len(self.kept.rows):
            files = dict.fromkeys(names.values(), self.kept.file(number))
        block.load_state_dict(read_tensors(files, names), assign=True)
        return block.to(self.device)

    def close(self, number: int, row: dict | None = None) -> None:
        """Forgets a block, after it was written if it is finished just now.

        Args:
            number: Which.
            row: What is known of it then.
        """
        block, names = self.blocks[number], self._names(number)
        if row is not None:
            state = block.to('cpu').state_dict()
            named = {names[name]: tensor for name, tensor in state.items()}
            self.kept.keep(number, named, row)
        block.to('meta')

    def _names(self, number: int) -> dict[str, str]:
        """What the tensors of a block are called in the files."""
        path = self.paths[number]
        return {
            name: self.names[f'{path}.{name}']
            for name in self.blocks[number].state_dict()
        }
