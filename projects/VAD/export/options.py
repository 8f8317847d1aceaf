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
    frames: int = option(
        3, 'keyframes that lie beside the files, to run on', least=1
    )

    def __post_init__(self) -> None:
        check_values(self)
