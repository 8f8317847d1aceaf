"""What the runs of DistilBERT share besides model and data."""

default_scope = 'mmengine'
custom_imports = dict(imports=['mmprune'])

# What can be removed, for hooks and commands.
pruning = dict(type='mmprune.Family', adapters=['mmprune.distilbert_groups'])

val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type='mmprune.Accuracy')
test_evaluator = val_evaluator
main_metric = 'Acc@1'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmprune.SafeCheckpointHook', interval=1, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [dict(type='mmprune.SeedHook'), dict(type='mmprune.PlanHook')]
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
