"""How the pictures were normalised that a model was trained on."""

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Where a training config has its data, today and before mmengine.
_TRAINING = ('train_dataloader', 'train_pipeline', 'data')
_LOADERS = ('test_dataloader', 'val_dataloader', 'train_dataloader')


def compare_normalization(
    cfg: Mapping, meta: Any, path: Any, log: Callable[[str], None]
) -> None:
    """Warns if a config normalises pictures otherwise than a training did.

    Nothing is said where one of the two does not tell.

    Args:
        cfg: The config that the weights are used with.
        meta: Of the checkpoint.
        path: Its file, for the message.
        log: Called with the warning.
    """
    trained = normalization_of_training(meta)
    for loader in _LOADERS if trained else ():
        found = _first(_normalizations(cfg.get(loader)))
        found = found or _of_preprocessor(cfg)
        if found and found != trained:
            log(
                f'warning: `{loader}` of {getattr(cfg, "filename", "it")} '
                f'turns pictures into {_words(found)}, and {path} was trained '
                f'on {_words(trained)}; with the wrong one a model sees '
                'almost nothing, so take the config of its training'
            )
            return


def normalization_of_training(meta: Any) -> dict | None:
    """Returns ``mean``, ``std`` and ``to_rgb`` of a training.

    Args:
        meta: Of a checkpoint: the numbers themselves (``img_norm_cfg``, also
            of the training data), or else the text of the config. It is
            parsed, and nothing of it is run.

    Returns:
        None where nothing tells.
    """
    meta = meta if isinstance(meta, Mapping) else {}
    if 'img_norm_cfg' in meta:
        return _numbers(meta['img_norm_cfg'])
    data = meta.get('dataset_meta')
    if isinstance(data, Mapping) and 'img_norm_cfg' in data:
        return _numbers(data['img_norm_cfg'])
    for key in ('config', 'cfg'):
        if isinstance(meta.get(key), str):
            cfg = _parsed(meta[key])
            places = (cfg.get(name) for name in _TRAINING)
            places = map(_training_part, places)
            found = (n for place in places for n in _normalizations(place))
            return _first(found) or _of_preprocessor(cfg)
    return None


def _training_part(place: Any) -> Any:
    """Of ``data = dict(train=..., test=...)`` what is trained on."""
    if isinstance(place, Mapping) and 'train' in place:
        return place['train']
    return place


def _of_preprocessor(cfg: Mapping) -> dict | None:
    model = cfg.get('model')
    inside = model if isinstance(model, Mapping) else {}
    parts = (inside.get('data_preprocessor'), cfg.get('data_preprocessor'))
    return _first(_normalizations(list(parts)))


def _normalizations(node: Any) -> Iterator[dict]:
    """Yields every normalisation in nested dicts and lists, in order."""
    if isinstance(node, Mapping):
        found = _numbers(node)
        if found:
            yield found
        node = list(node.values())
    for child in node if isinstance(node, list | tuple) else ():
        yield from _normalizations(child)


def _numbers(step: Any) -> dict | None:
    """``mean``, ``std`` and ``to_rgb`` of a dict that has them."""
    try:
        mean, std = ([float(x) for x in step[k]] for k in ('mean', 'std'))
    except (KeyError, TypeError, ValueError):
        return None
    # A transform turns into RGB unless told not to, a preprocessor does not.
    default = 'Normalize' in str(step.get('type'))
    to_rgb = step.get('to_rgb', step.get('bgr_to_rgb', default))
    return dict(mean=mean, std=std, to_rgb=bool(to_rgb))


def _first(found: Iterator[dict]) -> dict | None:
    return next(iter(found), None)


def _words(found: dict) -> str:
    mean, std = (' '.join(f'{x:g}' for x in found[k]) for k in ('mean', 'std'))
    order = 'RGB' if found['to_rgb'] else 'BGR'
    return f'{order} with mean {mean} and deviation {std}'


def _parsed(text: str) -> dict[str, Any]:
    """The plain values that a config's text assigns."""
    try:
        body = ast.parse(text).body
        return {
            statement.targets[0].id: _literal(statement.value)
            for statement in body
            if isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _literal(node: ast.AST) -> Any:
    """The value of an expression of constants, lists and dicts."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        return {k.arg: _literal(k.value) for k in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [getattr(key, 'value', None) for key in node.keys]
        return dict(zip(keys, map(_literal, node.values), strict=True))
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    return node.value if isinstance(node, ast.Constant) else None
