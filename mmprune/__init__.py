"""Prune OpenMMLab and other PyTorch models into smaller ordinary models."""

from mmprune import compat

compat.install()
