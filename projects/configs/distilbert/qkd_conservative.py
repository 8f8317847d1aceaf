"""QKD-4bit for accuracy: three epochs that follow the teacher's logits more.

    MMPRUNE_DISTILBERT=... MMPRUNE_SST2=... MMPRUNE_DENSE=dense.pth \
        MMPRUNE_PRUNED=pruned.pth \
        python tools/train.py projects/configs/distilbert/qkd_conservative.py
"""

_base_ = ['qkd_full.py']

model = dict(
    task_weight=0.2,
    terms=[dict(source='classifier', loss='kl', weight=0.6, temperature=4.0)]
    + [
        dict(
            source=f'distilbert.transformer.layer.{layer}',
            loss='mse',
            weight=0.2 / 6,
            mask='attention_mask',
        )
        for layer in range(6)
    ],
)
train_cfg = dict(max_epochs=3)
