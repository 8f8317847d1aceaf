"""The short names of the criteria, as ``--importance`` takes them."""

CRITERIA = {
    'l1': dict(type='mmprune.Magnitude', p=1),
    'l2': dict(type='mmprune.Magnitude', p=2),
    'bn_scale': dict(type='mmprune.BNScale'),
    'taylor': dict(type='mmprune.Taylor'),
    'fisher': dict(type='mmprune.Fisher'),
    'fpgm': dict(type='mmprune.FPGM'),
    'lamp': dict(type='mmprune.LAMP'),
    'group_l2': dict(type='mmprune.GroupNormalized'),
    'group_taylor': dict(
        type='mmprune.GroupNormalized',
        criterion=dict(type='mmprune.Saliency'),
        power=1,
        norms=False,  # their changes are those of the kernels before them
    ),
    'saliency': dict(type='mmprune.Saliency'),
    'activation': dict(type='mmprune.Activation'),
    'remain': dict(type='mmprune.Remain'),
    'kd_grad': dict(type='mmprune.KDGrad'),
    'l2+kd_grad': dict(type='mmprune.Mixed'),
    'random': dict(type='mmprune.Random'),
    'wanda': dict(type='mmprune.Wanda'),
    'wanda_variant': dict(type='mmprune.WandaVariant'),
    'ria': dict(type='mmprune.RIA'),
}

# They have nothing to say about a single weight.
ONLY_UNITS = (
    'bn_scale',
    'fpgm',
    'group_l2',
    'group_taylor',
    'activation',
    'remain',
    'kd_grad',
    'l2+kd_grad',
)
# They have nothing to say about a whole unit.
ONLY_WEIGHTS = ('wanda_variant', 'ria')


def criterion_config(name: str, seed: int = 0) -> dict:
    """Returns the config of a criterion.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in CRITERIA:
        raise ValueError(
            f'no criterion is called {name!r}; there are {", ".join(CRITERIA)}'
        )
    config = dict(CRITERIA[name])
    if name == 'random':
        config['seed'] = seed
    return config
