# A CUDA image with everything installed; the source is copied in, data and checkpoints are mounted.
#   docker compose run --rm neox python deepy.py train.py configs/quickstart.yml
ARG CUDA_IMAGE=nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04
FROM ${CUDA_IMAGE}

ENV DEBIAN_FRONTEND=noninteractive \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH

RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        build-essential git make openssh-client pdsh python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Requirements first: a change of the source alone does not install them again.
COPY requirements /tmp/requirements
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install -r /tmp/requirements/requirements.txt \
        -r /tmp/requirements/requirements-hf.txt \
        -r /tmp/requirements/requirements-spm.txt \
        -r /tmp/requirements/requirements-tiktoken.txt \
    && rm -r /tmp/requirements

# The same user id as most hosts' first user, so that files written to the mounts belong to them.
ARG USER_ID=1000
RUN id -u ${USER_ID} >/dev/null 2>&1 || useradd --create-home --uid ${USER_ID} neox
WORKDIR /workspace/gpt-neox
COPY --chown=${USER_ID} . .
RUN mkdir -p data checkpoints && chown ${USER_ID} . data checkpoints
USER ${USER_ID}

CMD ["bash"]
