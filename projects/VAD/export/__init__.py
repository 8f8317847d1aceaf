"""VAD as ONNX files with static shapes, and a driver of them in numpy."""
