# resdeploy for CPUs. Not built where it was written, which has no Docker engine: say so in an issue if it fails.
#   docker build -t resdeploy .
#   docker run --rm -v "$PWD:/work" resdeploy run quickstart
ARG BASE=python:3.12-slim
FROM ${BASE}
# torch comes from PyTorch's CPU index: the plain one brings several GB of CUDA. EXTRAS=runtime does without torch.
ARG EXTRAS=all
ARG PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
COPY . /source
RUN pip install --no-cache-dir ${PIP_ARGS} -c /source/constraints.txt "/source[${EXTRAS}]" && rm -rf /source
# Whoever runs it keeps the files: docker run --user "$(id -u):$(id -g)". Without a home there is no cache to keep.
ENV RESDEPLOY_CACHE=/tmp/resdeploy
WORKDIR /work
ENTRYPOINT ["resdeploy"]
CMD ["--help"]
