"""resdeploy takes a ResNet from weights to a deployment that can be trusted."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resdeploy.api import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`resdeploy.load`, imported once it is asked for: `import resdeploy` itself imports nothing."""
    if name == "load":
        from resdeploy.api import load

        return load
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
