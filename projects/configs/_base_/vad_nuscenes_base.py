"""Training and test data of VAD-Base: nuScenes, 1280x720 pictures.

As VAD-Tiny's, with four frames per training sample; the pictures are padded
to 1280x736.
"""

_base_ = './vad_nuscenes.py'

train_pipeline, test_pipeline = (
    [
        dict(step, scales=[0.8]) if 'scales' in step else step
        for step in pipeline
    ]
    for pipeline in (_base_.train_pipeline, _base_.test_pipeline)
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, queue_length=4))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_dataloader = test_dataloader
