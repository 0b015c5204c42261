# syntax=docker/dockerfile:1
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY requirements/gateway.txt requirements/gateway.txt
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/gateway.txt
COPY clients /venv/app/clients
COPY gateway /venv/app/gateway

FROM python:3.11-slim-bookworm
COPY --from=build /venv /venv
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin trunkline
ENV PYTHONPATH=/venv/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/venv/bin:$PATH
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
# It listens beyond loopback, so it takes TRUNKLINE_GATEWAY_KEYS_FILE, or TRUNKLINE_GATEWAY_INSECURE=true.
ENTRYPOINT ["python", "-m", "gateway"]
CMD ["--host", "0.0.0.0", "--port", "8080", "--embedding-address", "embedding:8101", "--heads-address", "heads:8500", "--catalogue", "/repository/catalogue.json"]
