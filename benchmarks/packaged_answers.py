"""Whether a packaged folder, in an environment without resdeploy, gives the logits of `eval` to the bit.

python -m venv apart && apart/bin/pip install numpy==2.4.6 pillow==13.0.0 onnxruntime==1.32.0
python benchmarks/packaged_answers.py r20.onnx --data cifar10/test --backend onnxruntime --python apart/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy import api, store
from resdeploy.data import datasets, loading
from resdeploy.measure import environment

ASK = """
import importlib.util, sys
sys.path.insert(0, sys.argv[1])
assert importlib.util.find_spec("resdeploy") is None, "resdeploy is installed in this environment"
import numpy
from classifier import Classifier
names = open(sys.argv[2]).read().splitlines()
numpy.save(sys.argv[3], Classifier(sys.argv[1]).logits(names))
"""


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Images as lossless files, so that both sides decode the same pixels; `eval`'s logits, and the folder's."""
    images = datasets.deduplicate(datasets.open_dataset(options.data, split="test"))
    names = []
    for k, label in enumerate(images.labels.tolist()):
        path = folder / "images" / f"{label:04}" / f"{k:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        loading.decode(images.read(k)).convert("RGB").save(path)
        names.append(str(path))
    how = {"backend": options.backend, "batch_size": options.batch_size, "threads": options.threads}
    api.package(options.model, folder / "served", for_="python", **how)
    (folder / "names").write_text("\n".join(sorted(names)))
    answers = folder / "logits.npy"
    subprocess.run([options.python, "-I", "-c", ASK, folder / "served", folder / "names", answers], check=True)
    packaged = np.load(answers)
    evaluated = api.evaluate(options.model, data=str(folder / "images"), **how).predictions.logits
    assert evaluated is not None
    return {
        "model": Path(options.model).name,
        **how,
        "images": len(names),
        "equal_to_the_bit": int((packaged == evaluated).all(axis=1).sum()),
        "other_classes": int((packaged.argmax(axis=1) != evaluated.argmax(axis=1)).sum()),
        "python": subprocess.check_output([options.python, "--version"], text=True).strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--backend", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--python", required=True, help="an interpreter with numpy, Pillow and the runtime alone")
    parser.add_argument("--output", type=Path, help="results are added to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = compare(options, Path(folder))
    print(json.dumps(row))
    if options.output:
        rows = json.loads(options.output.read_text())["results"] if options.output.exists() else []
        document = {"command": "benchmarks/packaged_answers.py", "environment": environment.capture()}
        store.write_json(options.output, {**document, "results": [*rows, row]})
    sys.exit(row["equal_to_the_bit"] != row["images"])


if __name__ == "__main__":
    main()
