# Relay in a container, from the versions of constraints.txt. It was not built where it was written: there is no Docker.
#   docker build --tag relay .                                                                      PyTorch for CPUs
#   docker build --tag relay:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .  PyTorch with CUDA
# docs/installation.md has the commands that run it.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=clouds,tensorboard,tabular,microbiome

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# torch is a layer of its own: it is large, and changes less often than Relay.
WORKDIR /opt/relay
COPY constraints.txt ./
RUN python -m pip install -c constraints.txt --extra-index-url "${TORCH_INDEX}" torch

COPY pyproject.toml README.md LICENSE ./
COPY accelerate_configs accelerate_configs
COPY runner runner
COPY recipes recipes
RUN python -m pip install -c constraints.txt --extra-index-url "${TORCH_INDEX}" ".[${EXTRAS}]"

# Runs, data and caches lie in /data, where the user of the container may write.
RUN useradd --create-home --uid 1000 relay && mkdir -p /data/runs && chown -R relay /data
USER relay
WORKDIR /data
ENV HF_HOME=/data/.cache/huggingface \
    RELAY_CACHE=/data/.cache/relay

# relay is the first process, so `docker stop` sends it SIGTERM: it saves and leaves with status 75.
ENTRYPOINT ["relay"]
CMD ["doctor"]
