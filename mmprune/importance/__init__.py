"""Criteria: which units and weights matter. One file each, registered by
class name.

A criterion names in ``needs`` the statistics that it reads, scores units when
it is called (``criterion(group, stats) -> [size]``), and has a method
``weights(name, stats)`` if it can score single weights as well.
"""

from .activation import Activation
from .bn_scale import BNScale
from .fisher import Fisher
from .fpgm import FPGM
from .group_normalized import GroupNormalized
from .kd_grad import KDGrad
from .lamp import LAMP
from .magnitude import Magnitude
from .mixed import Mixed
from .random import Random
from .remain import Remain
from .ria import RIA
from .saliency import Saliency
from .sensitivity import Sensitivity
from .taylor import Taylor
from .wanda import Wanda
from .wanda_variant import WandaVariant

__all__ = [
    'Activation',
    'FPGM',
    'LAMP',
    'RIA',
    'BNScale',
    'Fisher',
    'GroupNormalized',
    'KDGrad',
    'Magnitude',
    'Mixed',
    'Random',
    'Remain',
    'Saliency',
    'Sensitivity',
    'Taylor',
    'Wanda',
    'WandaVariant',
]
