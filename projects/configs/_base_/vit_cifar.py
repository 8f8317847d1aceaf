"""CIFAR-10 images of 32 x 32, and ViT-Small with patches of 4.

The training images are cut as the public script cuts them: the last tenth
(5,000 of 50,000) validates. Where the images lie is asked of the environment.
"""

data_root = '{{$MMPRUNE_CIFAR10:data/cifar10}}'
# Mean and standard deviation of the training images, times 255.
data_preprocessor = dict(
    type='ImgDataPreprocessor',
    mean=[125.3, 123.0, 113.9],
    std=[63.0, 62.1, 66.7],
)
train_pipeline = [
    dict(type='mmprune.PadCrop', padding=4),
    dict(type='mmprune.RandomMirror'),
    dict(type='mmprune.ToTensor'),
]
eval_pipeline = [dict(type='mmprune.ToTensor')]

model = dict(
    type='mmprune.TimmClassifier',
    model='vit_small_patch16_224',
    img_size=32,
    patch_size=4,
    num_classes=10,
    data_preprocessor=data_preprocessor,
)
dataset = dict(
    type='mmprune.CIFAR',
    kind='cifar10',
    data_root=data_root,
    pipeline=eval_pipeline,
)
train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset={**dataset, 'split': 'train', 'pipeline': train_pipeline},
)
val_dataloader = dict(
    batch_size=256,
    num_workers=2,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset={**dataset, 'split': 'val'},
)
test_dataloader = {**val_dataloader, 'dataset': {**dataset, 'split': 'test'}}
