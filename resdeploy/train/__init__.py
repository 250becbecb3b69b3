"""Training of classifiers in torch, in floats and on the graph of an INT8 file."""
