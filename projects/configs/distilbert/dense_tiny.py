"""A small DistilBERT learns generated reviews: the model to be pruned.

    python tools/train.py projects/configs/distilbert/dense_tiny.py

A minute on one core, without any download.
"""

_base_ = [
    '../_base_/distilbert_runtime.py',
    '../_base_/distilbert_tiny.py',
]

train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=1)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1.0,
        end_factor=0.0,
        begin=0,
        end=4,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
