#!/usr/bin/env bash
# publish.sh IMAGE_REPOSITORY CHART_REPOSITORY: push what `make release` has built in dist/; an empty place: not that one.
# Log in before (docker or podman login, helm registry login). PUSH_FLAGS and HELM_FLAGS are passed on.
set -euo pipefail
image_repository=$1 chart_repository=$2
cd "$(dirname "$0")/../.."
PATH="$PATH:$PWD/.cache/bin"
(cd dist && sha256sum --check --quiet SHA256SUMS)

if [ -n "$image_repository" ]; then
    engine=$(command -v podman || command -v docker) || { echo "publish: neither podman nor docker is there" >&2; exit 1; }
    archives=(dist/*-image.tar)
    version=${archives[0]#dist/trio-broker-}
    image=$image_repository:${version%-image.tar}
    "$engine" load --input "${archives[0]}"
    "$engine" image inspect "$image" >/dev/null ||
        { echo "publish: dist/ has no $image: make release IMAGE_REPOSITORY=$image_repository" >&2; exit 1; }
    # shellcheck disable=SC2086
    "$engine" push ${PUSH_FLAGS:-} "$image"
fi
if [ -n "$chart_repository" ]; then
    # shellcheck disable=SC2086
    helm push ${HELM_FLAGS:-} dist/trio-broker-*.tgz "$chart_repository"
fi
