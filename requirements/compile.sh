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
lock dev --all-extras --group dev
lock all --all-extras --constraints requirements/dev.txt
for extra in gateway embedding heads; do
    lock "$extra" --extra "$extra" --constraints requirements/dev.txt
done
echo "uv==$(uv --version | cut -d' ' -f2)" | uv pip compile - --universal --python-version 3.11 --generate-hashes --no-header \
    --no-emit-index-url --no-emit-find-links --quiet --output-file requirements/bootstrap.txt
