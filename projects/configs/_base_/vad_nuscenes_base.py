"""Training and test data of VAD-Base: nuScenes, 1280x720 pictures.

As VAD-Tiny's, with four frames per training sample; the pictures are padded
to 1280x736.
"""

_base_ = './vad_nuscenes.py'

train_pipeline = _base_.train_pipeline
train_pipeline[5].scales = [0.8]
test_pipeline = _base_.test_pipeline
test_pipeline[4].scales = [0.8]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, queue_length=4))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_dataloader = test_dataloader
