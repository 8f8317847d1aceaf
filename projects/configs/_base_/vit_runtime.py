"""What the runs of iterative pruning share besides model and data."""

default_scope = 'mmengine'
custom_imports = dict(imports=['mmprune'])

# One round: SGD with a warm-up by iteration, as the public script trains.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
)
val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type='mmprune.Accuracy')
test_evaluator = val_evaluator

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
# TensorBoard or WandB: add dict(type='TensorboardVisBackend') or
# dict(type='WandbVisBackend', init_kwargs=dict(project=...)).
visualizer = dict(
    type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]
)
