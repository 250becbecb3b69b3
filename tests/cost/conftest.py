"""Graphs of the zoo's networks, as the tests of the graph have them."""

from tests.graph.conftest import ours, torchscript

__all__ = ["ours", "torchscript"]
