#!/usr/bin/env bash
# readme.sh [CHART]: generate the chart's README.md of values.yaml and README.md.gotmpl.
set -euo pipefail
PATH="$PATH:$(dirname "$(realpath "$0")")/../../.cache/bin"
cd "${1:-$(dirname "$0")/../trio-broker}"
helm-docs --sort-values-order file --log-level warning
