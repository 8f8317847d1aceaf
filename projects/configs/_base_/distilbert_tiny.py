"""A small DistilBERT and generated reviews: nothing to fetch.

3 layers of width 96 with 6 heads of 16 and 384 neurons: 18 heads and 1,152
neurons in all.
"""

model = dict(
    type='mmprune.HuggingFaceClassifier',
    config=dict(
        model_type='distilbert',
        vocab_size=128,
        dim=96,
        n_layers=3,
        n_heads=6,
        hidden_dim=384,
        max_position_embeddings=64,
        seq_classif_dropout=0.1,
    ),
    num_labels=2,
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    collate_fn=dict(type='mmprune.pad_sentences'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='mmprune.BatchesByLength'),
    dataset=dict(
        type='mmprune.GeneratedSentiment',
        split='train',
        size=4000,
        max_length=64,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    collate_fn=dict(type='mmprune.pad_sentences'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmprune.GeneratedSentiment',
        split='dev',
        size=1000,
        max_length=64,
    ),
)
test_dataloader = val_dataloader
