"""QKD-4bit in full: a pruned DistilBERT learns to do with 4-bit weights.

    MMPRUNE_DISTILBERT=... MMPRUNE_SST2=... MMPRUNE_DENSE=dense.pth \
        MMPRUNE_PRUNED=pruned.pth \
        python tools/train.py projects/configs/distilbert/qkd_full.py
    python tools/quantize.py projects/configs/distilbert/qkd_full.py \
        work_dirs/qkd_full/epoch_2.pth

The forward rounds the weights of all linear layers but the last two to 4 bits
in groups of 32, the gradient goes to the weights behind; the dense model
teaches. tools/quantize.py then packs just what was rounded.
"""

_base_ = [
    '../_base_/distilbert_runtime.py',
    '../_base_/distilbert_sst2.py',
]

pruned = '{{$MMPRUNE_PRUNED:work_dirs/kgsp_full/pruned.pth}}'
classifier = dict(
    type='mmprune.HuggingFaceClassifier',
    config='{{$MMPRUNE_DISTILBERT:distilbert-base-uncased}}',
    num_labels=2,
)
model = dict(
    _delete_=True,
    type='mmprune.DistilledModel',
    student=dict(
        type='mmprune.FakeQuantizedModel',
        model=dict(type='mmprune.PrunedModel', model=classifier, plan=pruned),
        scheme=dict(group_size=32, activations='float'),
    ),
    teacher=classifier,
    teacher_checkpoint='{{$MMPRUNE_DENSE:work_dirs/dense_sst2/epoch_3.pth}}',
    # beta_ce, beta_logits and beta_hidden, a mean over layers.
    task_weight=0.3,
    terms=[dict(source='classifier', loss='kl', weight=0.5, temperature=4.0)]
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
load_from = pruned

train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-5, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
default_hooks = dict(checkpoint=dict(save_best='Acc@1', rule='greater'))
