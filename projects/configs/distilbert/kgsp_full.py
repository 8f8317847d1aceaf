"""KGSP and MSP in full: 30% of the heads and 20% of the neurons go.

    MMPRUNE_DISTILBERT=... MMPRUNE_SST2=... MMPRUNE_DENSE=dense.pth \
        python tools/train.py projects/configs/distilbert/kgsp_full.py

Distillation-aware gradual pruning: in the first half of the training the
sparsity grows by a cubic schedule, in the second half it stays while the model
recovers. It learns from the dense model (MMPRUNE_DENSE, from dense_sst2.py),
from which it starts; the gradient of that distillation is half of what decides
on heads and neurons. With all 67,349 sentences of GLUE 8 epochs are 16,840
steps and 210 prunings. Writes pruned.pth: 22 heads and 3,686 neurons fewer,
57.0 of 67.0 million parameters, 23.7% fewer MACs at 128 tokens.
"""

_base_ = [
    '../_base_/distilbert_runtime.py',
    '../_base_/distilbert_sst2.py',
]

dense = '{{$MMPRUNE_DENSE:work_dirs/dense_sst2/epoch_3.pth}}'
classifier = dict(
    type='mmprune.HuggingFaceClassifier',
    config='{{$MMPRUNE_DISTILBERT:distilbert-base-uncased}}',
    num_labels=2,
)
model = dict(
    _delete_=True,
    type='mmprune.DistilledModel',
    student=classifier,
    teacher=classifier,
    teacher_checkpoint=dense,
    # 0.3 cross entropy + 0.5 logits + 0.2 hidden states, a mean over layers.
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
load_from = dense

train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=1)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-5, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
default_hooks = dict(checkpoint=dict(save_best='Acc@1', rule='greater'))
custom_hooks = [
    dict(type='mmprune.SeedHook'),
    dict(type='mmprune.PlanHook'),
    dict(
        type='mmprune.GradualPruningHook',
        schedule=dict(
            type='mmprune.CubicSchedule',
            begin=0.05,
            end=0.5,
            final=dict(head=0.30, neuron=0.20),
        ),
        pruner=dict(
            type='mmprune.StructuredPruner',
            importance=dict(
                type='mmprune.Mixed', lambda_mag=0.5, lambda_grad=0.5
            ),
            # Mixed has brought the units of all layers to one scale.
            normalize=None,
        ),
        interval=40,
        window=50,
    ),
    dict(
        type='mmprune.EarlyStopHook',
        monitor='Acc@1',
        rule='greater',
        patience=5,
    ),
    dict(type='mmprune.ExportHook', best=True),
]
