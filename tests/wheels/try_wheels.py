"""`make wheels`: builds wheel and sdist, and tries both in fresh environments of every Python that the project is for.

Nothing of the checkout is imported, and pip takes everything from its index. Of each Python two environments:

- the sdist without extras: what needs a runtime or torch is exit 6, and the remedy that is printed, typed as it stands,
  mends it;
- the wheel with `runtime`: quantize, eval, gate and audit work, and torch is not there.

Last, `uvx --from 'WHEEL[cpu,data]' resdeploy run quickstart`. Exit 1 where anything failed or a Python is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SIGHT = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"]  # the file does not say how it sees images
JUDGED = ["--data", "images", *SIGHT, "--max-drop", "20"]
IN_SDIST = (
    "docs/README.md",
    "profiles/quickstart.toml",
    "benchmarks/peers.py",
    "CHANGELOG.md",
    "constraints.txt",
    "Makefile",
)


@dataclass
class Trial:
    """What was tried so far, and what of it failed."""

    folder: Path
    pip_args: list[str]
    failures: list[str] = field(default_factory=list)

    def check(self, name: str, good: bool, why: str = "") -> bool:
        print(f"{'ok' if good else 'FAILED'}  {name}", flush=True)
        if not good:
            self.failures.append(name)
            print("\n".join(f"    {line}" for line in why.splitlines()[-30:]), flush=True)
        return good

    def run(self, name: str, command: list[str] | str, where: Path, status: int = 0, says: str = "") -> str:
        """What a command printed; it is tried that it ends with `status` and says `says`."""
        done = subprocess.run(
            command, cwd=where, env=self.environment(), text=True, shell=isinstance(command, str), check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        why = f"exit {done.returncode}, not {status}\n{done.stdout}"
        self.check(name, done.returncode == status and says in done.stdout, why)
        return done.stdout

    def environment(self) -> dict[str, str]:
        """Ours, without what would lead into the checkout or into another environment."""
        left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
        kept = {name: value for name, value in os.environ.items() if name not in left_out}
        return {**kept, "RESDEPLOY_CACHE": str(self.folder / "cache"), "COLUMNS": "200"}

    def install(self, name: str, python: Path, *requirements: str) -> Path:
        """The programs of a fresh environment with these requirements; by uv, once that is there: it copies nothing."""
        home, uv = self.folder / name.replace(" ", "-"), self.folder / "tools/bin/uv"
        shutil.rmtree(home, ignore_errors=True)
        self.run(f"{name}: venv", [str(python), "-m", "venv", str(home)], self.folder)
        own = str(home / "bin/python")
        installer = [str(uv), "pip", "install", "--python", own] if uv.exists() else [own, "-m", "pip", "install"]
        self.run(f"{name}: install", [*installer, "--quiet", *self.pip_args, *requirements], self.folder)
        return home / "bin"


def build(trial: Trial, tools: Path) -> tuple[Path, Path]:
    """Wheel and sdist, the wheel made from the sdist, and what must be in them."""
    dist = trial.folder / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    trial.run("build", [str(tools / "python"), "-m", "build", "--outdir", str(dist), str(ROOT)], trial.folder)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    trial.run("twine check", [str(tools / "twine"), "check", "--strict", str(wheel), str(sdist)], trial.folder)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    profiles = {f"resdeploy/profiles/{path.name}" for path in (ROOT / "profiles").glob("*.toml")}
    trial.check("the wheel has every profile", profiles <= names, str(profiles - names))
    templates = {f"resdeploy/report/templates/{name}" for name in ("page.html", "macros.html", "page.css", "page.js")}
    trial.check("the wheel has the page's templates", templates <= names, str(templates - names))
    relative = [link for link in re.findall(r"\]\(([^)\s]+)", metadata) if "://" not in link]
    trial.check("no link of the description is relative", not relative, str(relative))
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    trial.check("the sdist has docs, profiles and tests", packed.issuperset(IN_SDIST), str(set(IN_SDIST) - packed))
    return wheel, sdist


def interpreter(version: str, uv: Path) -> Path | None:
    """A Python of this version: on PATH, of pyenv, or as uv finds or fetches it; None: there is none to be had."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for path in (shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")):
        if path is not None and told([str(path), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]) == version:
            return Path(path)
    found = told([str(uv), "python", "find", version])
    if not found and told([str(uv), "python", "install", version]) is not None:
        found = told([str(uv), "python", "find", version])
    return Path(found) if found else None


def told(command: list[str]) -> str | None:
    """What a command printed; None where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def try_core(trial: Trial, version: str, python: Path, sdist: Path) -> None:
    """Without extras: exit 6 where something is missing, and the printed remedy works."""
    name = f"{version} core"
    bin_ = trial.install(name, python, str(sdist))
    resdeploy, where = str(bin_ / "resdeploy"), bin_.parent / "trial"
    where.mkdir()
    make_network = [str(bin_ / "python"), str(ROOT / "tests/wheels/small_network.py"), str(where)]
    trial.run(f"{name}: a network and images", make_network, where)
    trial.run(f"{name}: --help", [resdeploy, "--help"], where, says="quantize")
    trial.run(f"{name}: cost", [resdeploy, "cost", "small.onnx"], where)
    trial.run(f"{name}: export", [resdeploy, "export", "resnet20"], where, 6, "E-MISSING-PACKAGE")
    trial.run(f"{name}: a profile that comes along", [resdeploy, "run", "quickstart"], where, 6, "E-")
    trial.run(f"{name}: a profile that is not there", [resdeploy, "run", "quickstep"], where, 2, "quickstart")
    wanted = [resdeploy, "eval", "small.onnx", "--data", "images", *SIGHT]
    said = trial.run(f"{name}: eval", wanted, where, 6, "E-BACKEND-MISSING")
    remedy = re.search(r"`([^`]* install [^`]*)`", " ".join(said.split()))
    if trial.check(f"{name}: eval says what to install", remedy is not None, said) and remedy is not None:
        trial.run(f"{name}: {remedy[1]}", remedy[1], where)
        trial.run(f"{name}: eval, mended", wanted, where)
    shutil.rmtree(bin_.parent)


def try_runtime(trial: Trial, version: str, python: Path, wheel: Path) -> None:
    """With the runtimes and without torch: from an FP32 file to a judged INT8 one."""
    name = f"{version} runtime"
    bin_ = trial.install(name, python, f"{wheel}[runtime]")
    resdeploy, where = str(bin_ / "resdeploy"), bin_.parent / "trial"
    where.mkdir()
    make_network = [str(bin_ / "python"), str(ROOT / "tests/wheels/small_network.py"), str(where)]
    trial.run(f"{name}: a network and images", make_network, where)
    trial.run(
        f"{name}: there is no torch", [str(bin_ / "python"), "-c", "import torch"], where, 1, "ModuleNotFoundError"
    )
    trial.run(f"{name}: export", [resdeploy, "export", "resnet20"], where, 6, "E-MISSING-PACKAGE")
    commands = (
        ["quantize", "small.onnx", "--calib-data", "images/train", *SIGHT],
        ["eval", "small.onnx", "small.int8.onnx", "--data", "images", *SIGHT],
        ["gate", "--baseline", "small.onnx", "--candidate", "small.int8.onnx", *JUDGED],
        ["audit", "small.int8.onnx"],
    )
    for command in commands:
        trial.run(f"{name}: {command[0]}", [resdeploy, *command], where)
    shutil.rmtree(bin_.parent)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build/wheels", help="where environments are made")
    parser.add_argument("--python", nargs="*", default=PYTHONS, metavar="VERSION", help="which to try; default: all")
    parser.add_argument("--pip-args", default="", help="what pip is given too, as PIP_ARGS of make")
    parser.add_argument("--no-uvx", action="store_true", help="without the last step, which brings torch")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(folder, asked.pip_args.split())
    tools = trial.install("tools", Path(sys.executable), "build", "twine", "uv")
    wheel, sdist = build(trial, tools)
    for version in asked.python:
        python = interpreter(version, tools / "uv")
        if trial.check(
            f"{version}: {python or 'there is none on this machine, and uv fetches none'}", python is not None
        ):
            assert python is not None
            try_core(trial, version, python, sdist)
            try_runtime(trial, version, python, wheel)
    if not asked.no_uvx:
        empty = folder / "uvx"
        shutil.rmtree(empty, ignore_errors=True)
        empty.mkdir()
        uvx = [str(tools / "uvx"), "--python", sys.executable, "--from", f"{wheel}[cpu,data]", "resdeploy"]
        trial.run("uvx resdeploy run quickstart", [*uvx, "run", "quickstart"], empty, says="Verdict: PASS")
    print(f"{len(trial.failures)} failed" + "".join(f"\n  {name}" for name in trial.failures))
    return 1 if trial.failures else 0


if __name__ == "__main__":
    sys.exit(main())
