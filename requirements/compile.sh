#!/bin/sh
# Locks from pyproject.toml: hashes, no addresses. Versions are kept unless UPGRADE=1.
set -eu
cd "$(dirname "$0")/.."
lock() {
    out=$1
    shift
    [ "${UPGRADE:-}" = 1 ] && [ "$out" = dev ] && set -- "$@" --upgrade
    uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header \
        --no-emit-index-url --no-emit-find-links --overrides requirements/overrides.txt --quiet \
        "$@" --output-file "requirements/$out.txt"
}
lock dev --extra all --extra tables --extra otel --extra s3 --extra postgres --group dev
lock all --extra all --constraints requirements/dev.txt
for extra in gateway heads; do
    lock "$extra" --extra "$extra" --constraints requirements/dev.txt
done
# What the image of the embedding service carries: its protocols and its shared cache are settings, not other images.
lock embedding --extra embedding --extra zmq --extra redis --constraints requirements/dev.txt
# All that the torch engines and their tests need but PyTorch itself: its builds differ by machine, so no hash fits all.
lock torch --extra embedding-gpu --group torch-test --constraints requirements/dev.txt \
    --overrides requirements/overrides-torch.txt --no-emit-package torch
echo "uv==$(uv --version | cut -d' ' -f2)" | uv pip compile - --universal --python-version 3.11 --generate-hashes --no-header \
    --no-emit-index-url --no-emit-find-links --quiet --output-file requirements/bootstrap.txt
