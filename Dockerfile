# syntax=docker/dockerfile:1
# One image for the code server, the webserver, the daemon and the workers of docker-compose.yml.

FROM python:3.11-slim-bookworm AS build
# Where torch comes from: PyTorch's index of builds without CUDA, which are a tenth of the size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=celery
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
# The packages first, for an empty pipeline: they are fetched again only when what is needed has changed.
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir abo_pipeline && touch abo_pipeline/__init__.py \
    && pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" ".[${EXTRAS}]"
COPY abo_pipeline abo_pipeline
RUN pip install --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
# A volume takes over the owner of the folder that it is put on.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin abo \
    && install --directory --owner=abo --group=abo /data /data/reports /archives /opt/dagster /opt/dagster/storage
COPY --from=build /opt/venv /opt/venv
COPY deploy/dagster.yaml deploy/workspace.yaml /opt/dagster/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DAGSTER_HOME=/opt/dagster \
    ABO_STATE_DIR=/data
WORKDIR /opt/dagster
USER 10001:10001
EXPOSE 3000 4000 8080
CMD ["dagster-webserver", "--host", "0.0.0.0", "--port", "3000", "--workspace", "/opt/dagster/workspace.yaml"]
