"""Makes tests/data/tensorrt/api.json.gz from TensorRT's real API lists: `python tests/doubles/pack_api.py FOLDER`.

FOLDER holds api-VERSION.json as `dir()` and the signatures of the imported bindings gave them. Kept of each class: its
enum members, its methods with the names of their parameters, its properties and whether they can be set.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "data/tensorrt/api.json.gz"


def member(kind: Any) -> Any:
    """Parameter names of a method; "rw" or "ro" for a property; "value" for a constant."""
    if isinstance(kind, list):
        names: set[str] = set()
        for signature in kind:
            inside = signature[signature.index("(") + 1 :].rpartition(" -> ")[0] or signature
            names |= set(re.findall(r"(?:^|, )([A-Za-z_]\w*):", inside))
        return sorted(names - {"self"})
    return "ro" if "read-only" in str(kind) else "rw" if str(kind).startswith("property") else "value"


def main(folder: Path) -> None:
    versions = {}
    for path in sorted(folder.glob("api-*.json")):
        document = json.loads(path.read_text())
        versions[path.stem.removeprefix("api-")] = {
            "classes": {
                name: {
                    "enum": found.get("enum", []),
                    "members": {key: member(kind) for key, kind in sorted(found["members"].items())},
                }
                for name, found in sorted(document["classes"].items())
            },
            "functions": sorted(document["functions"]),
        }
    data = json.dumps(versions, sort_keys=True, separators=(",", ":")).encode()
    OUT.write_bytes(gzip.compress(data, 9, mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
