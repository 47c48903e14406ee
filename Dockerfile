# docker build -t moco .                                              torch for the CPU
# docker build -t moco --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# FFCV is compiled here; numba and torch.compile need the compiler later as well
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libopencv-dev libturbojpeg0-dev make pkg-config \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 moco
USER 1000
WORKDIR /home/moco
ENV PATH=/home/moco/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

COPY --chown=1000 requirements.txt ./
# torch and torchvision from one index, so that they fit each other; FFCV last, as it is compiled against NumPy
RUN python -m venv venv \
    && pip install --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)" "$(grep '^torchvision==' requirements.txt)" \
    && sed '/^ffcv==/d' requirements.txt >without-ffcv.txt \
    && pip install -r without-ffcv.txt \
    && pip install -r requirements.txt

COPY --chown=1000 . clone
RUN pip install --no-deps --no-build-isolation ./clone \
    && python -c "import ffcv.libffcv, moco.builder, torchvision"
CMD ["moco-pretrain", "--help"]
