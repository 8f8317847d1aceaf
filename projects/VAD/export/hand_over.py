"""What somebody with the target machine needs beside the graphs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmprune.atomic_file import write_whole

from .driver import Arrays

# One run of a part: its name, what went in, what came out.
Ran = tuple[str, Arrays, Arrays]

_COMMANDS = """\
# Building engines

Every tensor of {frames} frames in a row lies here raw, little-endian, under
the name of its binding: `FRAME/PART/in/NAME.bin`, `FRAME/PART/out/NAME.bin`;
shapes and types are in `../deploy.json`. `load.py` gives the inputs to
polygraphy. `calibration.npz` has pictures (`img`) to calibrate int8 on.
None of these commands was run by whoever made this folder.

TensorRT 8.6 (it reads opset 17: export with `--opset 17`):

    trtexec --onnx=../image.onnx --fp16 --saveEngine=image.engine \\
        --loadInputs=img:0/image/in/img.bin \\
        --profilingVerbosity=detailed --dumpProfile --separateProfileRun \\
        --useSpinWait
    trtexec --onnx=../head.onnx --noTF32 --saveEngine=head.engine \\
        --loadInputs={head_inputs}

TensorRT 10: the same, or strongly typed, so that float32 stays float32:

    trtexec --onnx=../head.onnx --stronglyTyped --saveEngine=head.engine
    trtexec --onnx=../int8/image.onnx --best --saveEngine=image_int8.engine

TensorRT 11 is strongly typed always and has no `--fp16`; CUDA graphs, spin
wait and no transfers are its defaults:

    trtexec --onnx=../image.onnx --saveEngine=image.engine
    trtexec --onnx=../head.onnx --saveEngine=head.engine

Weights of a 2:4 pattern: add `--sparsity=enable`. Compare each engine with
onnxruntime, because GridSample attention was wrong in some releases without a
word (NVIDIA/TensorRT issue 4813); if it is, export with `--form gather` or
`--form plugin`:

    PART=head_first polygraphy run ../head_first.onnx --trt --onnxrt \\
        --data-loader-script load.py --atol 1e-3 --rtol 1e-3
"""
_LOADER = '''\
"""Gives polygraphy the inputs of a part, frame by frame."""

import json
import os
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PART = os.environ.get('PART', 'head')


def load_data():
    """Yields a dict of arrays per frame on which the part ran."""
    about = json.loads((HERE.parent / 'deploy.json').read_text())
    inputs = about['parts'][PART]['inputs']
    for folder in sorted(HERE.glob(f'*/{PART}/in')):
        yield {
            name: np.fromfile(folder / f'{name}.bin', each['dtype']).reshape(
                each['shape']
            )
            for name, each in inputs.items()
        }
'''


def write_hand_over(
    folder: Path, frames: Sequence[Sequence[Ran]], pictures: np.ndarray
) -> None:
    """Writes raw tensors, pictures to calibrate on, and command lines.

    Args:
        folder: What is made.
        frames: What ran in each frame, in order.
        pictures: ``[n, 1, cameras, 3, H, W]``.
    """
    last: Arrays = {}
    for number, runs in enumerate(frames):
        for part, given, found in runs:
            place = folder / str(number) / part
            for side, arrays in (('in', given), ('out', found)):
                (place / side).mkdir(parents=True, exist_ok=True)
                for name, array in arrays.items():
                    array = np.ascontiguousarray(array)
                    array.tofile(place / side / f'{name}.bin')
            last = given
    inputs = ','.join(
        f'{name}:{len(frames) - 1}/head/in/{name}.bin' for name in last
    )
    text = _COMMANDS.format(frames=len(frames), head_inputs=inputs)
    write_whole(folder / 'README.md', text.encode())
    write_whole(folder / 'load.py', _LOADER.encode())
    np.savez(folder / 'calibration.npz', img=pictures)
