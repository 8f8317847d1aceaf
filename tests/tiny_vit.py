"""The smallest ViT with something to prune: for pictures of 8 x 8."""

# Two blocks of four heads and 64 neurons.
VIT = dict(
    type='mmprune.TimmClassifier',
    model='vit_tiny_patch16_224',
    img_size=8,
    patch_size=4,
    in_chans=1,
    num_classes=10,
    embed_dim=16,
    depth=2,
    num_heads=4,
)
