#!/usr/bin/env bash
# Install what builds and runs containers without a daemon, where it is missing. Needs Debian or Ubuntu, and root.
set -euo pipefail
programs=(podman buildah runc mmdebstrap iptables catatonit netavark aardvark-dns prometheus)

missing=()
for program in "${programs[@]}"; do
    PATH="$PATH:/usr/libexec/podman:/usr/lib/podman" command -v "$program" >/dev/null || missing+=("$program")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}. Install them, or run this as root where apt-get is (Debian, Ubuntu)." >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${programs[@]}" ca-certificates debian-archive-keyring >/dev/null
