"""Test data of VAD-Base: as VAD-Tiny's, with pictures of 1280x720.

They are padded to 1280x736.
"""

_base_ = './vad_keyframe.py'

test_pipeline = _base_.test_pipeline
test_pipeline[4].scales = [0.8]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_dataloader = test_dataloader
