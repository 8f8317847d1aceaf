"""DistilBERT on SST-2, dense: the model to be pruned, and the teacher.

    MMPRUNE_DISTILBERT=/models/distilbert-base-uncased MMPRUNE_SST2=data/sst2 \
        python tools/train.py projects/configs/distilbert/dense_sst2.py

66,955,010 parameters, 72 heads, 18,432 neurons; 5.59 GMACs for 128 tokens.
The model card of DistilBERT gives 91.3 on SST-2.
"""

_base_ = [
    '../_base_/distilbert_runtime.py',
    '../_base_/distilbert_sst2.py',
]

train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-5, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1.0,
        end_factor=0.0,
        begin=0,
        end=3,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
