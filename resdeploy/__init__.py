"""resdeploy takes a ResNet from weights to a deployment that can be trusted."""

__version__ = "0.1.0"
