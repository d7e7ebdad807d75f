# One image for handlers (`async-processor serve`) and poller (`async-processor poll`).
#
#   docker build -t dev.local/async-processor:0.1.0 \
#     --build-arg PYTHON_DIGEST="$(docker buildx imagetools inspect python:3.11-slim-bookworm --format '{{.Manifest.Digest}}')" \
#     --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" .
#
# PYTHON_DIGEST is required. The base image is named by digest, so that a later build uses the same base.
# SOURCE_DATE_EPOCH becomes the time of every file, so that the same sources give the same layers.
ARG PYTHON_DIGEST

FROM docker.io/library/python:3.11-slim-bookworm@${PYTHON_DIGEST} AS dependencies
ARG SOURCE_DATE_EPOCH=315532800
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/venv
COPY requirements.txt ./
# Only wheels with known hashes are installed: no code of a package runs during the build.
RUN pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: -r requirements.txt
# Compile to byte code here: the root file system is read-only later, and a cold start should not compile. The byte
# code has no timestamps, and all files get the same time.
RUN /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib \
 && find /opt/venv -exec touch -h -d "@${SOURCE_DATE_EPOCH}" {} +

FROM dependencies AS application
COPY requirements-build.txt ./
RUN pip install --require-hashes --only-binary :all: --target /opt/build -r requirements-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY async_processor/ async_processor/
COPY handlers/ handlers/
RUN PYTHONPATH=/opt/build pip wheel --no-deps --no-build-isolation --wheel-dir /opt/wheels . \
 && pip --python /opt/venv/bin/python install --no-deps --no-index --target /opt/app /opt/wheels/*.whl \
 && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/app \
 && find /opt/app -exec touch -h -d "@${SOURCE_DATE_EPOCH}" {} +

FROM docker.io/library/python:3.11-slim-bookworm@${PYTHON_DIGEST}
LABEL org.opencontainers.image.title="async-processor" \
      org.opencontainers.image.description="Serverless handlers that fill the idle capacity of an LLM inference pool" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/app/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Two layers: the dependencies are large and change seldom; the application is small and changes often.
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=application /opt/app /opt/app
# A number, so that Kubernetes can check runAsNonRoot. Any other number works too (OpenShift assigns one).
USER 65532:65532
WORKDIR /opt/app
EXPOSE 8080 9090
ENTRYPOINT ["async-processor"]
CMD ["serve"]
