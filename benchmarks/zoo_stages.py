"""The stages that `zoo.py` takes a detector through, a process for each.

Every stage gets the folder of the family, in which it finds what the stages
before it left, the stock config and the fraction to remove.
"""

import copy
from pathlib import Path

import mmdet.models  # noqa: F401
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint, save_checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from zoo_peer import torch_pruning  # noqa: F401 a stage
from zoo_verdicts import least

from mmprune.checkpoints.loading import load_model
from mmprune.discovery.labels import tensors_in
from mmprune.families.detector import drawn
from mmprune.family import Family, build_family
from mmprune.masks import mask_plan
from mmprune.registry import MODELS
from mmprune.run import export as run_export
from mmprune.run import folder as run_folder
from mmprune.run import workflow
from mmprune.run.options import PruningOptions

torch.set_num_threads(1)

# Regions of a picture that a stage hands on.
REGIONS = 16
# Boxes at points of which it chooses them.
BEFORE_NMS = 128
# Points of a block of a room.
POINTS = 512
# Times by which a voxel is longer and wider.
COARSER = 8
# How the reasons of groups begin that a comparison kept dense.
CHECKED = ('the model does not run without', 'removing its units is not')
# Sides of the pictures; some models need more than the smallest.
SIDES = (128, 256, 512)
# Hourglasses halve the smallest one to a single place, over which batch norms
# of two pictures make gradients of 1e13.
DEEP = ('cornernet', 'centripetalnet')


def build(work: Path, config: Path, ratio: float) -> dict:
    """Builds the detector and writes its config and lively weights."""
    cfg = Config.fromfile(str(config))
    init_default_scope(cfg.default_scope)
    while 'detector' in cfg.model:  # of a tracker, or of a teacher
        cfg.model = cfg.model.detector
    for_this_machine(cfg.model, Path(mmdet.__file__).parent / '.mim')
    if cfg.default_scope == 'mmdet':
        cfg.model.setdefault('data_preprocessor', PICTURES)
    few_regions(cfg.model)
    pipeline = cfg.test_dataloader.dataset.get('pipeline')
    if pipeline and not any('scale' in step for step in pipeline):
        # A camera of mmdet3d: as large as its data, which is not here.
        pipeline.insert(0, dict(type='Resize3D', scale=(0, 0)))
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    for side in SIDES:
        small_pictures(cfg._cfg_dict, side)
        cfg.dump(str(work / 'config.py'))
        try:
            enliven(model, drawn(cfg, side, side))
            keep_teacher(model, cfg, work)
            with torch.no_grad():
                build_family(cfg).single_frame(model)
        except (RuntimeError, ValueError, IndexError) as error:
            fault = error
            continue
        weights = dict(state_dict=model.state_dict())
        save_checkpoint(weights, str(work / 'dense.pth'))
        return {}
    raise fault


PICTURES = dict(
    type='DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_size_divisor=32,
)


def for_this_machine(node: object, wheel: Path) -> None:
    """Makes a config one that builds from the wheels, in one process.

    Leaves out pretrained weights, finds teachers in the wheel, and makes
    norms over several processes those of one.
    """
    if isinstance(node, dict):
        if str(node.get('type')).endswith('SyncBN'):
            node['type'] = 'BN'
        for key in ('init_cfg', 'teacher_ckpt', 'pretrained'):
            if '://' in (text := str(node.get(key))) or '.pth' in text:
                node[key] = None
        if str(node.get('teacher_config', '')).startswith('configs/'):
            node['teacher_config'] = str(wheel / node['teacher_config'])
    if isinstance(node, dict | list | tuple):
        for part in node.values() if isinstance(node, dict) else node:
            for_this_machine(part, wheel)


def few_regions(model: dict) -> None:
    """Lets each stage hand on a few regions, and scores of any size pass.

    Random weights score all alike: a hundred regions would go through each
    box and mask head. Of a block of a room there are a few points, and a
    space has fewer voxels.
    """
    if 'n_voxels' in model:
        across, along, high = model.n_voxels
        model.n_voxels = [across // COARSER, along // COARSER, high]
    if 'num_points' in (model.get('test_cfg') or {}):
        model.test_cfg.num_points = POINTS
    if 'num_proposals' in model.get('rpn_head', {}):  # learnt ones
        model.rpn_head.num_proposals = REGIONS
    for cfg in (model.get('train_cfg'), model.get('test_cfg')):
        for part in (cfg or {}).values():
            stages = part if isinstance(part, list) else [part]
            for stage in stages:
                if isinstance(stage, dict):
                    for nms in stage.values():  # of points
                        if isinstance(nms, dict) and 'nms_post' in nms:
                            nms.update(nms_pre=BEFORE_NMS, nms_post=REGIONS)
                    if 'max_per_img' in stage:
                        stage.max_per_img = min(stage.max_per_img, REGIONS)
                    if 'score_thr' in stage:
                        stage.score_thr = 0.0
        if cfg and 'score_thr' in cfg:
            cfg.score_thr = 0.0


def small_pictures(node: object, side: int) -> None:
    """Sets the size of pictures in all pipelines and of padded batches."""
    if isinstance(node, dict):
        if node.get('type') == 'BatchFixedSizePad':
            node['size'] = (side, side)
        for key in ('scale', 'img_scale'):
            if isinstance(node.get(key), tuple | list):
                node[key] = (side, side)
    if isinstance(node, dict | list | tuple):
        for part in node.values() if isinstance(node, dict) else node:
            small_pictures(part, side)


def enliven(model: nn.Module, batch: dict) -> None:
    """Gives constant weights values, and batch norms their statistics."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() > 1 and not parameter.std() > 0:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.1 * noise
    for module in model.modules():
        if type(module).__name__ == 'DIIHead':
            # Random steps lead boxes out of the picture: mmdet pastes no
            # masks there.
            module.fc_reg.weight.data *= 0.02
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    both = pair(batch)
    with torch.no_grad():
        try:
            model(**model.data_preprocessor(both, False), mode='predict')
        except AssertionError:  # masked convolutions take a picture at a time
            model(**model.data_preprocessor(batch, False), mode='predict')
        if hasattr(model, 'extract_teacher_feat'):
            # LAD's predicts nothing; its depth makes values overflow.
            inputs = model.data_preprocessor(both, False)['inputs']
            teacher = model.teacher_model
            teacher.bbox_head(model.extract_teacher_feat(inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        # Of a picture and its mirror image, means over the whole differ by
        # next to nothing, and rounding would be made as large as a signal.
        norm.running_var.clamp_(min=0.01)
        if not norm.num_batches_tracked:  # a branch of training alone
            norm.reset_running_stats()
        norm.eval()


def keep_teacher(model: nn.Module, cfg: Config, work: Path) -> None:
    """Gives all stages the same teacher, which no state dict has."""
    if 'teacher_ckpt' in cfg.model:
        cfg.model.teacher_ckpt = str(work / 'teacher.pth')
        weights = dict(state_dict=model.teacher_model.state_dict())
        save_checkpoint(weights, cfg.model.teacher_ckpt)
        cfg.dump(str(work / 'config.py'))


def pair(batch: dict) -> dict:
    """Returns a batch of a sample and its mirror image.

    Of two that are the same, a batch norm over one place each would give
    rounding the size of a signal.
    """
    both = twice(batch)
    if isinstance(both['inputs'], list):
        both['inputs'][1] = both['inputs'][1].flip(-1)
    return both


def twice(node: object) -> object:
    """A batch of two of the sample that a batch holds."""
    if isinstance(node, dict):
        return {key: twice(part) for key, part in node.items()}
    return [*node, *copy.deepcopy(node)]


def prune(work: Path, config: Path, ratio: float) -> dict:
    """Prunes as the command does, and keeps what the model predicts."""
    cfg = Config.fromfile(work / 'config.py')
    options = PruningOptions(
        sparsity=ratio,
        mode='structured',
        scope='layer',  # or a group might be left out of what is tested
        latency_runs=0,
        prune_frozen=True,
    )
    model, meta = workflow.load_dense(cfg, work / 'dense.pth', options)
    result = workflow.prune(cfg, model, options)
    small, report = result.models['structured'], result.report
    run_folder.write(result.models, result.plans, report, cfg, meta, work)
    dense, after = (report['models'][n] for n in ('dense', 'structured'))
    found = dict(
        params=[dense['params'], after['params']],
        macs=[dense['macs'], after['macs']],
        difference=after['masked_difference'],
        held={
            group['group']: group['dense_because']
            for group in report['groups']
            if group['dense_because'].startswith(CHECKED)
        },
    )
    family = build_family(cfg)
    outputs = predictions(family, small)
    torch.save(outputs, work / 'outputs.pt')
    before = predictions(family, model)
    if all(map(alike, before, outputs)):
        return dict(found, verdict='no output depends on what was removed')
    total, left = prunable(report)
    if left > (1 - least(ratio)) * total:
        gone = f'{1 - left / total:.1%}'
        return dict(found, verdict=f'only {gone} of the parameters go')
    return found


def prunable(report: dict) -> tuple[int, int]:
    """Returns how many parameters hold units that might go, before and after.

    Units that were found may go, also those of a group that the comparison
    kept dense; not those of layers that compute something else without them,
    as under LayerNorm.
    """
    found = {
        group['group']
        for group in report['groups']
        if not group['dense_because']
        or group['dense_because'].startswith(CHECKED)
    }
    tensors = [t for t in report['tensors'] if found & set(t['groups'])]
    return tuple(sum(t[key] for t in tensors) for key in ('params', 'left'))


def predictions(family: Family, model: nn.Module) -> list[Tensor]:
    model.eval()
    with torch.no_grad():
        return list(tensors_in(family.forward(model)))


def alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def reload(work: Path, config: Path, ratio: float) -> dict | None:
    """Lets a stock Runner build and load the pruned model."""
    (path,) = work.glob('*_structured_pruned.py')
    cfg = Config.fromfile(path)
    cfg.work_dir = str(work / 'runner')
    runner = Runner.from_cfg(cfg)
    load_checkpoint(runner.model, cfg.load_from, strict=True)
    dense_cfg = Config.fromfile(work / 'config.py')
    found = predictions(build_family(dense_cfg), runner.model)
    before = torch.load(work / 'outputs.pt')
    if len(found) != len(before) or not all(map(alike, before, found)):
        return dict(verdict='the reloaded model predicts something else')
    return None


def train(work: Path, config: Path, ratio: float) -> dict | None:
    """Takes a step of the detector's own loss, masked and pruned.

    Both predict the same, so that an assignment of targets by predictions
    gives both the same gradients.
    """
    cfg = Config.fromfile(work / 'config.py')
    (path,) = work.glob('*_structured_pruned.pth')
    small = load_model(cfg, path)
    masked = load_model(cfg, work / 'dense.pth')
    mask_plan(masked, small.pruning_plan)
    # A bias of keys changes no softmax: what it gets is rounding.
    family = build_family(cfg)
    batch = family.small_batch(masked, training=True)
    if config.parent.name in DEEP:
        batch = drawn(cfg, SIDES[1], SIDES[1], training=True)
    expected = moved(family, masked, batch, smallest=1e-6)
    lost = sorted(expected - moved(family, small, batch))
    if lost:
        return dict(
            verdict=f'{len(lost)} parameters do not move, as {lost[0]}'
        )
    return None


def moved(
    family: Family, model: nn.Module, batch: dict, smallest: float = 0.0
) -> set[str]:
    """Returns which parameters have a gradient and move in a step.

    Gradients below ``smallest`` of the largest one do not count.
    """
    model.train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    torch.manual_seed(0)
    # Adam moves whatever has a gradient, however small.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    # Of one picture some batch norms would see a single value.
    family.loss(model, pair(batch)).backward()
    optimizer.step()
    sizes = {
        name: p.grad.abs().max()
        for name, p in model.named_parameters()
        if p.grad is not None and p.numel()
    }
    enough = smallest * max(sizes.values())
    return {
        name
        for name, p in model.named_parameters()
        if name in sizes
        and sizes[name] >= enough
        and not torch.equal(p, before[name])
    }


def export(work: Path, config: Path, ratio: float) -> dict:
    """Exports the pruned detector, if the dense one exports."""
    cfg = Config.fromfile(work / 'config.py')
    (pruned,) = work.glob('*_structured_pruned.pth')
    quiet = dict(latency_runs=0, log=lambda _: None)
    dense = load_model(cfg, work / 'dense.pth')
    try:
        run_export.export(cfg, dense, work / 'onnx_dense', **quiet)
    except Exception as error:  # of the exporter or of the runtime
        text = ' '.join(str(error).split())[:200]
        return dict(verdict=f'- (the dense one does not: {text})')
    small = load_model(cfg, pruned)
    found = run_export.export(cfg, small, work / 'onnx', **quiet)
    differences = found['parts']['model']['differences']
    return dict(onnx_difference=max(differences.values()))
