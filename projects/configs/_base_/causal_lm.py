"""What all language models share: a model folder names the rest.

The model, its tokenizer and the length of its windows come from the folder
that a command is given in the place of a checkpoint.
"""

default_scope = 'mmengine'
custom_imports = dict(imports=['mmprune'])
family = 'llm'
# Pruned models are written as folders that transformers loads.
checkpoint_format = 'huggingface'

model = dict(type='mmprune.HuggingFaceCausalLM', config=None, pretrained=None)

pruning = dict(
    type='mmprune.CausalLMFamily',
    adapters=[
        'mmprune.llama_groups',
        'mmprune.opt_groups',
        'mmprune.gpt2_groups',
        'mmprune.gpt_neox_groups',
    ],
    calibration=dict(
        type='mmprune.TokenWindows',
        source='generated',
        tokenizer=None,
        seqlen=None,
        num_windows=128,
        order='random',
    ),
)

_windows = dict(
    type='mmprune.TokenWindows',
    source='generated',
    tokenizer=None,
    seqlen=None,
    num_windows=128,
)
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**_windows, order='random'),
)
# Windows that do not overlap, as the papers measure it.
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**_windows, order='first'),
)
test_cfg = dict()
test_evaluator = dict(type='mmprune.Perplexity')
main_metric = 'perplexity'

train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.0))

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmprune.SafeCheckpointHook', interval=1, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [dict(type='mmprune.SeedHook')]
randomness = dict(seed=0)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
log_level = 'INFO'
visualizer = dict(
    type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]
)
