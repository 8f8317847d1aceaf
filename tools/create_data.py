"""Turns a nuScenes folder into the info files that VAD trains on.

    python tools/create_data.py nuscenes --root-path data/nuscenes \\
        --version v1.0-mini

writes vad_nuscenes_infos_temporal_{train,val}.pkl.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune.run.cli import ProgressBar, fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import argument, check_values, option, read  # noqa: E402

INFOS = ('infos_temporal_train', 'infos_temporal_val')


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is converted, and where it goes."""

    dataset: str = argument('the data set', choices=('nuscenes',))
    root_path: str = option('data/nuscenes', 'its folder')
    out_dir: str | None = option(
        None, 'where the info files go', shown='--root-path'
    )
    extra_tag: str = option('vad_nuscenes', 'begins their names')
    version: str = option(
        'v1.0',
        'v1.0-trainval, v1.0-mini, or v1.0 for the one that is there',
    )
    canbus: str | None = option(
        None, 'folder that holds can_bus', shown='--root-path'
    )
    require_canbus: bool = option(False, 'refuse to go on without a CAN bus')
    no_map: bool = option(False, 'leave the map lines out')
    max_sweeps: int = option(10, 'scans before each frame', least=0)

    def __post_init__(self) -> None:
        check_values(self)


def find_can_bus(args: DataOptions) -> Path | None:
    """Returns the folder that holds ``can_bus``; None where there is none.

    Raises:
        FileNotFoundError: It is required or named, and not there.
    """
    folder = Path(args.canbus or args.root_path)
    if (folder / 'can_bus').is_dir():
        return folder
    if args.canbus or args.require_canbus:
        raise FileNotFoundError(
            f'no CAN bus at {folder / "can_bus"}; unpack the CAN bus '
            'expansion there, or name the folder that holds it as --canbus.'
        )
    print(
        f'no CAN bus at {folder / "can_bus"}: speed comes from the poses, '
        'acceleration, rotation rate and steering are zero',
        file=sys.stderr,
    )
    return None


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    (asked,) = read(
        'Turn a nuScenes folder into info files of VAD.', (DataOptions,), argv
    )
    # Seconds that --help does without.
    from mmprune.errors import blame
    from mmprune.run.folder import begun

    out = Path(asked.out_dir or asked.root_path)
    names = [f'{asked.extra_tag}_{name}.pkl' for name in INFOS]
    with begun(out, *names), blame(f'{asked.root_path} cannot be converted'):
        paths, splits = convert(asked, out)
    for split, path in paths.items():
        print(f'wrote {path} ({len(splits[split])} scenes of {split})')


def convert(asked: DataOptions, out: Path) -> tuple[dict, dict]:
    """Converts the scenes; returns the files and the scenes by split."""
    from projects.VAD.data import nuscenes_infos

    version = nuscenes_infos.find_version(asked.root_path, asked.version)
    source = nuscenes_infos.open_source(
        asked.root_path,
        version,
        find_can_bus(asked),
        not asked.no_map,
        asked.max_sweeps,
    )
    splits = nuscenes_infos.split_scenes(source.nusc)
    count = sum(map(len, splits.values()))
    with ProgressBar(count, timed=True) as progress:
        paths = nuscenes_infos.convert(source, out, asked.extra_tag, progress)
    return paths, splits


if __name__ == '__main__':
    main()
