"""From an info file of either layout to packed records."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from projects.VAD.data.info_file import (
    load_first_records,
    load_info_file,
    stream_info_file,
    stream_keyframes,
)
from projects.VAD.data.keyframe_dataset import CAMERAS, map_labels
from projects.VAD.data.packed_records import Packer, Records
from projects.VAD.data.temporal_info import pack_info

# How many keyframes are looked at to learn where the pictures are.
PROBED_KEYFRAMES = 20
# What a record that holds something else than it should leads to.
BROKEN_RECORD = (
    AttributeError,
    FileNotFoundError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    np.linalg.LinAlgError,
)
# From a record of mmdet3d 1.x, the labels of its file and its place there.
ReadKeyframe = Callable[[dict, dict[int, int], int], dict]


class RecordReader:
    """Packs the records of an info file, and notes what else it holds.

    Args:
        path: The info file.
        training: Whether futures must be there.
        read_keyframe: Reads a record in the layout of mmdet3d 1.x.
        skip: Whether a broken record is left out.
    """

    def __init__(
        self,
        path: str | Path,
        training: bool,
        read_keyframe: ReadKeyframe,
        skip: bool,
    ) -> None:
        self.path, self.training, self.skip = path, training, skip
        self.read_keyframe = read_keyframe
        self._start()

    def _start(self) -> None:
        self._packer, self._count, self._problem = Packer(), 0, ''
        self._pictures, self._tokens, self._locations = [], [], set()

    def read(self) -> Records:
        """Returns all records, scene by scene, in time.

        ``found`` holds ``temporal`` (whether the layout is VAD's own),
        ``metadata`` (None where it was not read), ``pictures`` (some paths
        as the file has them), ``tokens`` (token of each keyframe and whether
        it has map lines), ``locations`` (of all) and ``problem`` (what is
        wrong with the first record that was left out, or '').

        Raises:
            FileNotFoundError: There is no such file, or a picture is absent.
            ValueError: The file is not usable, or a record is broken and may
                not be left out, or all are.
        """
        self._start()
        content = stream_keyframes(self.path, self._take_keyframes)
        if content is None:
            content = stream_info_file(self.path, self._take_infos)
            if 'data_list' in content:
                self._take_keyframes(content['data_list'], content['metainfo'])
        return self._records(content)

    def read_first(self, count: int) -> Records:
        """Returns the first records of the file that can be used.

        What follows them is not read.

        Args:
            count: How many; all, where there are fewer.
        """
        asked = max(count, PROBED_KEYFRAMES)
        while content := load_first_records(self.path, asked):
            self._start()
            self._take_content(content, count)
            if len(self._packer) >= count:
                return self._records(content)
            asked *= 2
        self._start()
        content = load_info_file(self.path, temporal=True)
        self._take_content(content, count)
        return self._records(content)

    def _records(self, content: dict) -> Records:
        """What was packed of a file that holds this beside."""
        if not len(self._packer):
            raise ValueError(
                f'info file {self.path} has no keyframe that can be used, of '
                f'{self._count}; make it again. {self._problem}'.rstrip()
            )
        found = dict(
            temporal='infos' in content,
            metadata=content.get('metadata'),
            pictures=self._pictures,
            tokens=self._tokens,
            locations=self._locations,
            problem=self._problem,
        )
        return self._packer.records(by_time=True, found=found)

    def _take_content(self, content: dict, count: int) -> None:
        """Takes so many records of a file of either layout."""
        self._take_infos(content.get('infos', []), count)
        if 'data_list' in content:
            infos, metainfo = content['data_list'], content['metainfo']
            self._take_keyframes(infos, metainfo, count)

    def _take_keyframes(
        self, infos: list[dict], metainfo: dict, count: int | None = None
    ) -> None:
        """Takes records of mmdet3d 1.x."""
        labels = map_labels(self.path, metainfo)
        self._take(
            infos,
            lambda info, index: self.read_keyframe(info, labels, index),
            count,
        )

    def _take_infos(self, infos: list[dict], count: int | None = None) -> None:
        missing = PROBED_KEYFRAMES - len(self._pictures)
        self._pictures += _pictures(infos[: max(missing, 0)])
        self._take(
            infos, lambda info, _: pack_info(info, self.training), count
        )

    def _take(
        self,
        entries: Iterable[dict],
        read: Callable[[dict, int], dict],
        count: int | None,
    ) -> None:
        for info in entries:
            if len(self._packer) == count:
                break
            index, self._count = self._count, self._count + 1
            try:
                record = read(info, index)
            except BROKEN_RECORD as error:
                self._note(error, index)
                continue
            self._packer.add(record)
            lines = bool({'gt_map_lines', 'gt_map'} & record.keys())
            self._tokens.append((record['token'], lines))
            self._locations.add(record.get('map_location'))

    def _note(self, error: Exception, index: int) -> None:
        text = error.args[0] if isinstance(error, KeyError) else error
        problem = (
            f'keyframe {index} of {self.path} cannot be used '
            f'({type(error).__name__}: {text})'
        )
        if not self.skip:
            missing = isinstance(error, FileNotFoundError)
            raise (FileNotFoundError if missing else ValueError)(
                f"{problem}; make the file again, or set corrupt='skip' to "
                'leave it out.'
            ) from error
        self._problem = self._problem or problem


def _pictures(infos: Iterable[dict]) -> list[str]:
    """Pictures of the infos, as far as these can be read."""
    found = []
    for info in infos:
        try:
            found.append(str(info['cams'][CAMERAS[0]]['data_path']))
        except (KeyError, TypeError, IndexError):
            continue
    return found
