"""Trains a small LLaMA on a text, to have something real to prune.

    python benchmarks/llm_train_small.py --text train.txt \
        --tokenizer tokenizer.model --out out/small --minutes 10

Windows start at random places; AdamW with a warm-up and a cosine to zero over
the minutes. Writes a folder that transformers loads, with the tokenizer.
"""

import argparse
import math
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from mmprune.checkpoints.model_folder import copy_tokenizer  # noqa: E402
from mmprune.datasets.text_tokenizer import load_tokenizer  # noqa: E402
from mmprune.registry import MODELS  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(
        description='Train a small language model.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--text', required=True, help='text file')
    add('--tokenizer', required=True, help='folder or file')
    add('--out', required=True, help='folder to write')
    add('--minutes', type=float, default=10, help='of training')
    add('--width', type=int, default=128, help='of the model')
    add('--layers', type=int, default=4, help='of the model')
    add('--seqlen', type=int, default=256, help='tokens of a window')
    add('--batch', type=int, default=16, help='windows of a step')
    add('--lr', type=float, default=3e-3, help='at its highest')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Runs the training."""
    args = parse_args(argv)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(args.tokenizer)
    text = Path(args.text).read_text(encoding='utf-8')
    tokens = torch.from_numpy(tokenizer.encode(text))
    config = dict(
        model_type='llama',
        hidden_size=args.width,
        intermediate_size=args.width * 43 // 16,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 16,
        num_key_value_heads=args.width // 32,
        vocab_size=tokenizer.size,
        max_position_embeddings=args.seqlen,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
    )
    model = MODELS.build(
        dict(type='mmprune.HuggingFaceCausalLM', config=config)
    ).train()
    steps = torch.optim.AdamW(
        model.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=0.1
    )
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / 60 / args.minutes) < 1:
        warm = min(1.0, step / 50)
        for group in steps.param_groups:
            group['lr'] = args.lr * warm * (1 + math.cos(math.pi * done)) / 2
        at = torch.randint(len(tokens) - args.seqlen, (args.batch,))
        batch = torch.stack([tokens[i : i + args.seqlen] for i in at])
        loss = model(input_ids=batch, mode='loss')['loss']
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
        steps.zero_grad()
        if step % 100 == 0:
            print(f'{done:.0%} step {step}: loss {loss.item():.3f}')
        step += 1
    model.eval().save_pretrained(args.out)
    copy_tokenizer(args.tokenizer, Path(args.out))
    count = sum(p.numel() for p in model.parameters())
    print(f'{step} steps, {count / 1e6:.2f} M parameters: {args.out}')


if __name__ == '__main__':
    main()
