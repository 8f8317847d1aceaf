"""Small models of every family, with an example, built from configs."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from mmprune.adapters import (
    bert_groups,
    distilbert_groups,
    ffn_groups,
    gpt2_groups,
    gpt_neox_groups,
    llama_groups,
    mha_groups,
    opt_groups,
    vit_groups,
)
from mmprune.discovery import discovered_groups
from mmprune.groups import PruneGroup


class Case(NamedTuple):
    """A model, how to run it, and its groups."""

    model: nn.Module
    forward: Callable[[nn.Module], Any]
    groups: list[PruneGroup]


def _case(
    model: nn.Module,
    forward: Callable[[nn.Module], Any],
    groups: Callable[[nn.Module], Iterable[PruneGroup]],
) -> Case:
    # Wider than the libraries' 0.02, so that every unit matters.
    for name, param in model.named_parameters():
        if param.ndim > 1:
            nn.init.normal_(param, std=0.2)
        elif 'bias' in name:
            nn.init.normal_(param, std=0.1)
    model.eval()
    return Case(model, forward, list(groups(model)))


def resnet() -> Case:
    """ResNet-18 with trained-looking norm statistics."""
    model = torchvision.models.resnet18(num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    image = torch.randn(2, 3, 64, 64)
    return _case(
        model,
        lambda m: m(image),
        lambda m: discovered_groups(m, lambda p: p(image)),
    )


def depthwise() -> Case:
    """A depthwise block, a concatenation and a flattened map."""
    return _case(
        DepthwiseNet(),
        lambda m: m(DepthwiseNet.image),
        lambda m: discovered_groups(m, lambda p: p(DepthwiseNet.image)),
    )


class DepthwiseNet(nn.Module):
    """Traps of tracing: depthwise, concat, flatten, transposed."""

    image = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 6, 1)
        self.up = nn.ConvTranspose2d(10, 6, 2, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns class scores ``[B, 5]``."""
        x = self.depthwise(self.stem(x).relu()).relu()
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        x = self.pool(self.norm(self.up(x)).relu())
        return self.head(x.flatten(1))


def vit() -> Case:
    """A timm ViT with a fused qkv projection."""
    model = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, patch_size=8, depth=2
    )
    image = torch.randn(2, 3, 32, 32)
    return _case(model, lambda m: m(image), vit_groups)


def distilbert() -> Case:
    """A DistilBERT classifier with a padded second sentence."""
    model = DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=50, n_layers=2, n_heads=4, dim=32, hidden_dim=64
        )
    )
    ids = torch.arange(20).view(2, 10)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return _case(
        model,
        lambda m: m(input_ids=ids, attention_mask=mask).logits,
        distilbert_groups,
    )


def bert() -> Case:
    """A BERT classifier with a padded second sentence."""
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
        )
    )
    ids = torch.arange(20).view(2, 10)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return _case(
        model,
        lambda m: m(input_ids=ids, attention_mask=mask).logits,
        bert_groups,
    )


def llama() -> Case:
    """A LLaMA with grouped-query attention and tied embeddings."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
    )
    ids = torch.arange(20).view(2, 10)
    return _case(model, lambda m: m(input_ids=ids).logits, llama_groups)


def _language(settings: dict, find: Callable) -> Case:
    ids = torch.arange(20).view(2, 10)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**settings, vocab_size=50)
    )
    return _case(model, lambda m: m(input_ids=ids).logits, find)


def opt() -> Case:
    """An OPT, whose query, key and value have biases."""
    settings = dict(
        model_type='opt',
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
    )
    return _language(settings, opt_groups)


def gpt2() -> Case:
    """A GPT-2, whose weights are transposed and whose qkv is fused."""
    settings = dict(
        model_type='gpt2', n_embd=32, n_layer=2, n_head=4, n_positions=16
    )
    return _language(settings, gpt2_groups)


def gpt_neox() -> Case:
    """A GPT-NeoX, whose qkv is fused head by head."""
    settings = dict(
        model_type='gpt_neox',
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
    )
    return _language(settings, gpt_neox_groups)


class Attention(nn.Module):
    """``nn.MultiheadAttention`` under a name, as in a detector."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(32, 4, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the attention's output only."""
        return self.attn(*args, **kwargs)[0]


def mha() -> Case:
    """A packed ``nn.MultiheadAttention``."""
    tokens = torch.randn(5, 2, 32)
    return _case(Attention(), lambda m: m(tokens, tokens, tokens), mha_groups)


def mha_separate() -> Case:
    """Keys and values of their own widths, batch first, without bias."""
    model = Attention(kdim=24, vdim=16, bias=False, batch_first=True)
    query, key = torch.randn(2, 5, 32), torch.randn(2, 7, 24)
    value = torch.randn(2, 7, 16)
    return _case(model, lambda m: m(query, key, value), mha_groups)


def encoder() -> Case:
    """PyTorch's encoder layers, which have a fused path of their own."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    tokens = torch.randn(2, 5, 16)
    return _case(model, lambda m: m(tokens), mha_groups)


def ffn() -> Case:
    """A branch of linear layers, nested as mmcv nests them."""
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(16, 12, bias=False),
        nn.GELU(),
        nn.Linear(12, 3),
    )
    x = torch.randn(6, 4)
    return _case(model, lambda m: m(x), ffn_groups)


CASES = {
    f.__name__: f
    for f in (
        resnet,
        depthwise,
        vit,
        distilbert,
        bert,
        llama,
        opt,
        gpt2,
        gpt_neox,
        mha,
        mha_separate,
        encoder,
        ffn,
    )
}
