"""Passes over ONNX graphs, and the way from torch to ONNX; a model in, a changed model or a description out."""
