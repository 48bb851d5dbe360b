# A Whence server. Build for CPU: docker build -t whence .    for NVIDIA GPUs: docker build --build-arg DEVICE=cuda -t whence:cuda .
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# -- the virtual environment, apart from the code, so that a change of code leaves this layer alone --------------------
FROM ${BASE} AS packages
ARG DEVICE=cpu
# Extras of pyproject.toml beside what every server needs, such as "ray" or "ray otel".
ARG EXTRAS=
# PyTorch's public index of CPU builds; the default build on PyPI (DEVICE=cuda) brings the CUDA libraries along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/whence
RUN ["python", "-m", "venv", ".venv"]
COPY pyproject.toml constraints.txt ./
RUN if [ "${DEVICE}" = cpu ]; then \
        .venv/bin/pip install --no-deps --index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)"; \
    fi
RUN EXTRAS="${EXTRAS}" .venv/bin/python -c "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [project['optional-dependencies'][name] for name in os.environ['EXTRAS'].split()]; \
print(*sum(extras, project['dependencies']), sep='\n')" \
        > requirements.txt \
    && .venv/bin/pip install -c constraints.txt -r requirements.txt

# -- the server --------------------------------------------------------------------------------------------------------
FROM ${BASE}
LABEL org.opencontainers.image.title="Whence" \
      org.opencontainers.image.description="A self-hosted REST explainability server: whence this output?" \
      org.opencontainers.image.licenses="Apache-2.0"

RUN groupadd --gid 10001 whence \
    && useradd --uid 10001 --gid whence --home-dir /data --no-create-home --shell /usr/sbin/nologin whence \
    && install -d -m 0700 -o whence -g whence /data \
    && install -d -m 0755 /models

WORKDIR /opt/whence
COPY --from=packages /opt/whence/.venv .venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY alembic alembic
COPY storage storage
COPY explainers explainers
COPY app app
COPY demo demo
RUN .venv/bin/pip install --no-cache-dir --no-deps --editable . \
    && .venv/bin/python -m compileall -q alembic storage explainers app demo

# Nothing is ever fetched from a model hub; models are mounted, read-only, at /models.
ENV PATH=/opt/whence/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    WHENCE_HOST=0.0.0.0 \
    WHENCE_PORT=8000 \
    WHENCE_DATA_DIR=/data \
    WHENCE_MODELS_DIR=/models

USER 10001:10001
# A place the user may write to: the embedded Postgres, when no WHENCE_DATABASE_URL is given, and the demo's key.
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"WHENCE_PORT\"]}/readyz', timeout=4)"]
ENTRYPOINT ["whence"]
CMD ["serve"]
