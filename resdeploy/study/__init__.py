"""`study`: experiments with plain and residual networks, on depth and on deleted blocks."""
