"""The one room that knows the order: weights -> ONNX -> low-precision ONNX -> built model -> measured -> judged.

`request` says which model a user means, `sources` turns that into a file, `make` turns files into files (each step
cached under the hash of everything it depends on), `bench` and `judge` measure and judge, `profile` runs it all from a
TOML file.
"""
