"""mmcv's extension functions, served from torch and torchvision.

``TABLE`` maps the name that mmcv's Python wrappers call to the function that
serves it, with the same arguments and the same output buffers. To serve one
more op, write the function and add its name here.
"""

from collections.abc import Callable
from types import ModuleType

from . import boxes, deform_attn, deform_conv, focal_loss, points, roi, rotated

TABLE: dict[str, Callable] = {
    'nms': boxes.nms,
    'softnms': boxes.softnms,
    'nms_match': boxes.nms_match,
    'nms_rotated': rotated.nms_rotated,
    'box_iou_rotated': rotated.box_iou_rotated,
    'roi_align_forward': roi.roi_align_forward,
    'roi_align_backward': roi.roi_align_backward,
    'roi_pool_forward': roi.roi_pool_forward,
    'roi_pool_backward': roi.roi_pool_backward,
    'deform_conv_forward': deform_conv.forward,
    'deform_conv_backward_input': deform_conv.backward_input,
    'deform_conv_backward_parameters': deform_conv.backward_parameters,
    'modulated_deform_conv_forward': deform_conv.modulated_forward,
    'modulated_deform_conv_backward': deform_conv.modulated_backward,
    'ms_deform_attn_forward': deform_attn.forward,
    'ms_deform_attn_backward': deform_attn.backward,
    'sigmoid_focal_loss_forward': focal_loss.sigmoid_forward,
    'sigmoid_focal_loss_backward': focal_loss.sigmoid_backward,
    'softmax_focal_loss_forward': focal_loss.softmax_forward,
    'softmax_focal_loss_backward': focal_loss.softmax_backward,
    'points_in_boxes_part_forward': points.part_forward,
    'points_in_boxes_all_forward': points.all_forward,
    'points_in_boxes_cpu_forward': points.cpu_forward,
    # Asked for by mmcv's and mmdet's environment reports.
    'get_compiler_version': lambda: 'n/a (ops served by mmprune)',
    'get_compiling_cuda_version': lambda: 'n/a (ops served by mmprune)',
}


def serve(module: ModuleType) -> None:
    """Fills ``module`` (``mmcv._ext``) with the functions of ``TABLE``.

    Any other name is a function that raises NotImplementedError when called,
    so that models which do not need the op import and run.
    """

    def unserved(name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(f'mmcv._ext has no {name!r}')

        def raise_unserved(*args: object, **kwargs: object) -> None:
            raise NotImplementedError(
                f'the mmcv op {name!r} needs the compiled extension of mmcv, '
                'and mmprune has no replacement for it; install mmcv with '
                'compiled ops (mim install "mmcv>=2.0.0rc4,<2.2.0")'
            )

        return raise_unserved

    module.__dict__.update(TABLE)
    module.__getattr__ = unserved
