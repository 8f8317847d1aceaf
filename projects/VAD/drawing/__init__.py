"""Pictures of keyframes with ground truth and predictions."""
