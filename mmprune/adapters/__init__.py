"""Adapters: which units a family of models has. One file each."""

from .bert import bert_groups
from .blocks import block_groups
from .deformable import deformable_groups
from .distilbert import distilbert_groups
from .ffn import ffn_groups
from .gpt2 import gpt2_groups
from .gpt_neox import gpt_neox_groups
from .llama import llama_groups
from .mha import mha_groups
from .opt import opt_groups
from .vit import vit_groups

__all__ = [
    'bert_groups',
    'block_groups',
    'deformable_groups',
    'distilbert_groups',
    'ffn_groups',
    'gpt2_groups',
    'gpt_neox_groups',
    'llama_groups',
    'mha_groups',
    'opt_groups',
    'vit_groups',
]
