"""QKD-4bit in the fast mode of the guide.

    MMPRUNE_DISTILBERT=... MMPRUNE_SST2=... MMPRUNE_DENSE=dense.pth \
        MMPRUNE_PRUNED=pruned.pth \
        python tools/train.py projects/configs/distilbert/qkd_fast.py

As qkd_full.py, with 1 epoch for 2, batches of 32 for 16, 30% of the sentences,
64 tokens for 128, and without the hidden states; what is left of the loss
keeps its weights (0.3 and 0.5).
"""

_base_ = ['qkd_full.py']

model = dict(
    terms=[dict(source='classifier', loss='kl', weight=0.5, temperature=4.0)]
)
train_cfg = dict(max_epochs=1)
train_dataloader = dict(
    batch_size=32, dataset=dict(fraction=0.3, max_length=64)
)
val_dataloader = dict(dataset=dict(fraction=0.5, max_length=64))
