# syntax=docker/dockerfile:1
# The embedded server, where the tensorflow/serving image is not wanted, and the control plane, whose home is /control;
# docker-compose.yml has the control plane of it, and the real tensorflow/serving.
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY requirements/heads.txt requirements/heads.txt
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/heads.txt
COPY clients /venv/app/clients
COPY head_service /venv/app/head_service

FROM python:3.11-slim-bookworm
COPY --from=build /venv /venv
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin trunkline \
    && install -d -o 10001 -g 10001 /control
ENV PYTHONPATH=/venv/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/venv/bin:$PATH
USER 10001
EXPOSE 8500 8501
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 8500), 2)"]
# It listens beyond loopback, so it takes TRUNKLINE_HEADS_KEYS_FILE, or TRUNKLINE_HEADS_INSECURE=true.
ENTRYPOINT ["python", "-m", "head_service.serving"]
CMD ["--host=0.0.0.0", "--model_config_file=/repository/models.container.config", "--model_config_file_poll_wait_seconds=1", \
     "--allow_version_labels_for_unavailable_models=true", "--allow_foreign_models=false"]
