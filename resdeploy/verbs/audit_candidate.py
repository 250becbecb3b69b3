"""The fusion audit of one built candidate, which `audit` and `gate --require-fused` share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from resdeploy import backends
from resdeploy.deploy import executed, model_string
from resdeploy.graph import files, int8_losses, intent
from resdeploy.judge import fusion
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Artifact, Audit, Precision


def audit_candidate(
    source: Artifact, candidate: Candidate, *, against: str | None = None, asked: Precision | None = None
) -> Audit:
    """The layers that the backend executes, held against the graph.

    Args:
        source: the file that it was built from; an ONNX file says what it asks for.
        candidate: what runs.
        against: the ONNX file that a compiled source was made from; None: unknown.
        asked: the precision asked for; None: what the source is in.
    """
    target = backends.load(candidate.backend).TARGET
    graph = against or (source.path if source.format == "onnx" else None)
    model = None if graph is None else files.load_model(Path(graph))
    found = fusion.judge(
        f"{model_string.stem(source.path)} on {candidate.backend}",
        executed.layers_of(candidate),
        intent=_intent_as_built(source, candidate, against),
        asked=asked or source.precision,
        target=target,
        placed_for=source.target,
    )
    known = source.notes if source.format == "onnx" else ()
    of_build = (note for note in candidate.artifact.notes if note not in known)  # for which GPUs it is, say
    lost = () if model is None else int8_losses.reasons(model, target)
    return dataclasses.replace(found, notes=(*found.notes, *of_build, *lost))


def _intent_as_built(source: Artifact, candidate: Candidate, against: str | None) -> intent.Intent | None:
    """What the graph that the backend builds from asks for: TensorRT's is in FP16 around its Q/DQ."""
    graph = dataclasses.replace(source, path=against, format="onnx") if against else source
    if graph.format != "onnx":
        return None
    with backends.load(candidate.backend).prepare(graph, candidate.execution) as (prepared, _):
        return intent_of(prepared.path)


def intent_of(graph: str | None) -> intent.Intent | None:
    """What an ONNX file asks for; None where none is named."""
    return None if graph is None else intent.of(files.load_model(Path(graph)))
