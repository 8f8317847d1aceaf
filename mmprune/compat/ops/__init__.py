"""mmcv's extension functions, served from torch and torchvision.

``TABLE`` maps the name that mmcv's Python wrappers call to the function that
serves it, with the same arguments and the same output buffers. To serve one
more op, write the function and add its name here.
"""

from collections.abc import Callable
from types import ModuleType

from . import (
    boxes,
    carafe,
    deform_attn,
    deform_conv,
    focal_loss,
    masked_conv,
    point_sets,
    points,
    polygons,
    psa_mask,
    roi,
    rotated,
    sampled_roi,
    scored_neighbours,
    voxels,
)

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
    'roipoint_pool3d_forward': points.pool_forward,
    'carafe_forward': carafe.forward,
    'carafe_backward': carafe.backward,
    'carafe_naive_forward': carafe.naive_forward,
    'carafe_naive_backward': carafe.naive_backward,
    'masked_im2col_forward': masked_conv.im2col_forward,
    'masked_col2im_forward': masked_conv.col2im_forward,
    'deform_roi_pool_forward': sampled_roi.deform_forward,
    'deform_roi_pool_backward': sampled_roi.deform_backward,
    'roi_align_rotated_forward': sampled_roi.rotated_forward,
    'roi_align_rotated_backward': sampled_roi.rotated_backward,
    'psamask_forward': psa_mask.forward,
    'psamask_backward': psa_mask.backward,
    'points_in_polygons_forward': polygons.points_forward,
    'dynamic_voxelize_forward': voxels.dynamic_forward,
    'hard_voxelize_forward': voxels.hard_forward,
    'dynamic_point_to_voxel_forward': voxels.scatter_forward,
    'dynamic_point_to_voxel_backward': voxels.scatter_backward,
    'furthest_point_sampling_forward': point_sets.furthest_forward,
    'furthest_point_sampling_with_dist_forward': (
        point_sets.furthest_with_dist_forward
    ),
    'ball_query_forward': point_sets.ball_query_forward,
    'knn_forward': point_sets.knn_forward,
    'three_nn_forward': point_sets.three_nn_forward,
    'gather_points_forward': point_sets.gather_forward,
    'gather_points_backward': point_sets.gather_backward,
    'group_points_forward': point_sets.group_forward,
    'group_points_backward': point_sets.group_backward,
    'three_interpolate_forward': point_sets.interpolate_forward,
    'three_interpolate_backward': point_sets.interpolate_backward,
    'assign_score_withk_forward': scored_neighbours.forward,
    'assign_score_withk_backward': scored_neighbours.backward,
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
