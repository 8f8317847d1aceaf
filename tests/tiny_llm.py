"""Language models of a moment, with half of their weights zero."""

from pathlib import Path

import torch
from mmengine.config import Config
from tiny_training import config
from torch import nn

from mmprune.pruners import WeightPruner, prunable_weights
from mmprune.registry import MODELS

SMALL = dict(vocab_size=48, max_position_embeddings=32)
LLAMA = dict(
    model_type='llama',
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=1,
    eos_token_id=2,
    **SMALL,
)
GPT2 = dict(
    model_type='gpt2',
    n_embd=16,
    n_layer=2,
    n_head=2,
    n_positions=32,
    vocab_size=48,
    bos_token_id=1,
    eos_token_id=2,
)
OPT = dict(
    model_type='opt',
    hidden_size=16,
    word_embed_proj_dim=16,
    ffn_dim=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    **SMALL,
)
NEOX = dict(
    model_type='gpt_neox',
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    **SMALL,
)
TIED = dict(LLAMA, tie_word_embeddings=True)
QWEN = dict(LLAMA, model_type='qwen2')
MISTRAL = dict(LLAMA, model_type='mistral')
ARCHITECTURES = dict(
    llama=LLAMA,
    tied=TIED,
    qwen2=QWEN,
    mistral=MISTRAL,
    opt=OPT,
    gpt2=GPT2,
    neox=NEOX,
)


def dense(settings: dict = LLAMA, seed: int = 3) -> nn.Module:
    """Returns a random model."""
    torch.manual_seed(seed)
    return MODELS.build(
        dict(type='mmprune.HuggingFaceCausalLM', config=dict(settings))
    )


def sparse(settings: dict = LLAMA, seed: int = 3, **options) -> nn.Module:
    """Returns a random model of which half the weights in blocks are zero."""
    model = dense(settings, seed)
    options = options or dict(sparsity=0.5, scope='row')
    WeightPruner(protect=['lm_head'], **options)(model)
    return model


def save_sparse(folder: Path, settings: dict = LLAMA, seed: int = 3) -> dict:
    """Writes such a model as a plain folder; returns its masks."""
    model = sparse(settings, seed)
    model.save_pretrained(folder)
    weights = prunable_weights(model, ['lm_head'])
    return {name: weight != 0 for name, weight in weights.items()}


def tokens(rows: int = 4, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Returns random tokens ``[rows, length]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 48, (rows, length), generator=generator)


def lm_config(work_dir: Path, model: dict, data: Path, **changes) -> Config:
    """Returns the config of a training on windows of tokens."""
    return config(
        work_dir,
        model=model,
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(
                type='mmprune.TokenWindows', source=str(data), seqlen=12
            ),
        ),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1),
            clip_grad=dict(max_norm=1.0),
        ),
        **changes,
    )
