"""The canonical form of an ONNX graph, one pass per file: all of the work that is done in onnx-ir."""
