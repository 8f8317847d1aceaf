"""DistilBERT and the sentences of SST-2.

MMPRUNE_DISTILBERT is the folder or hub name of the encoder, MMPRUNE_SST2 the
folder of train.tsv and dev.tsv, or `glue`.
"""

encoder = '{{$MMPRUNE_DISTILBERT:distilbert-base-uncased}}'
model = dict(
    type='mmprune.HuggingFaceClassifier',
    config=encoder,
    pretrained=encoder,
    num_labels=2,
)
dataset = dict(
    type='mmprune.SST2',
    data_root='{{$MMPRUNE_SST2:data/sst2}}',
    tokenizer=encoder,
    max_length=128,
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    collate_fn=dict(type='mmprune.pad_sentences'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='mmprune.BatchesByLength'),
    dataset={**dataset, 'split': 'train'},
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    collate_fn=dict(type='mmprune.pad_sentences'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset={**dataset, 'split': 'dev'},
)
test_dataloader = val_dataloader
