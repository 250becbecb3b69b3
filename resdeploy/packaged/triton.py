"""Decodes and preprocesses images in Triton's python backend, by the module and the spec that lie beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils  # Triton's own, found in its python backend alone
from classifier import decode, preprocess


class TritonPythonModel:
    """One image a row: the bytes of a JPEG or PNG file become the input of the network."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads spec.json, and from the model's configuration which type the network takes."""
        self.how = json.loads((Path(__file__).parent / "spec.json").read_text(encoding="utf-8"))["preprocessing"]
        output = triton_python_backend_utils.get_output_config_by_name(json.loads(args["model_config"]), "PIXELS")
        self.type = triton_python_backend_utils.triton_string_to_numpy(output["data_type"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request; one with an image that cannot be read is an error that says why."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        images = triton_python_backend_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        try:
            batch = np.stack([preprocess(decode(bytes(image)), self.how) for image in images.reshape(-1)])
        except ValueError as e:
            error = triton_python_backend_utils.TritonError(str(e))
            return triton_python_backend_utils.InferenceResponse(output_tensors=[], error=error)
        pixels = triton_python_backend_utils.Tensor("PIXELS", batch.astype(self.type, copy=False))
        return triton_python_backend_utils.InferenceResponse(output_tensors=[pixels])
