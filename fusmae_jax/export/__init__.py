"""Encoders for other programs: one safetensors file, StableHLO, ONNX, a PyTorch module; and the hub."""
