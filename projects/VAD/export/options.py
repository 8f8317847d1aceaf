"""What the export of VAD can be asked for."""

from dataclasses import dataclass

from mmprune.run.flags import check_values, option

FORM_NAMES = ('gridsample', 'gather', 'plugin')


@dataclass(frozen=True, kw_only=True)
class VADExportOptions:
    """How VAD's graphs are written."""

    form: str = option(
        'gridsample',
        'of the deformable attention; onnxruntime does not run the plug-in',
        choices=FORM_NAMES,
    )
    lanes: int | None = option(
        None,
        'lanes that motion reads, the most probable ones',
        type=int,
        least=1,
        shown='all, under a mask',
    )
    cells: int | None = option(
        None,
        'BEV cells that one camera is asked about',
        type=int,
        least=1,
        shown='all, under a mask',
    )
    fp16_features: bool = option(
        False,
        'hand the features over in half precision: half the traffic, and what '
        'an image part of an engine in fp16 gives anyway',
    )
    batch: int = option(
        1,
        'drives that run at once; the graphs hold the state of one',
        choices=(1,),
    )
    frames: int = option(
        3, 'keyframes that lie beside the files, to run on', least=1
    )

    int8: int | None = option(
        None,
        'also write an image part of eight bits, calibrated on so many '
        'keyframes, into int8/',
        type=int,
        least=1,
        metavar='KEYFRAMES',
        shown='off',
    )
    hand_over: bool = option(
        False,
        'also write raw tensors of three frames and command lines for '
        'TensorRT into hand_over/',
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.form == 'plugin' and (self.int8 or self.hand_over):
            raise ValueError(
                '--int8 and --hand-over run the graphs, and onnxruntime does '
                'not run --form plugin; export them in another form'
            )
