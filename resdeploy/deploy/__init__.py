"""How a MODEL becomes something that runs: named, exported to ONNX, lowered to a precision, built for a backend."""
