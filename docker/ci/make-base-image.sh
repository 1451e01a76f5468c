#!/usr/bin/env bash
# make-base-image.sh TAR: a stand-in for docker.io/library/python:3.13-slim where no image registry can be reached.
# Debian 13 with its own Python 3.13, from the Debian mirror that this machine uses; commands are where the official image has them.
set -euo pipefail
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -1)
mmdebstrap --quiet --format=tar --variant=minbase --include=ca-certificates,netbase,tzdata,python3,python3-venv,python3-pip \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' \
    --customize-hook='for name in python3 python pip3 pip; do ln -s "/usr/bin/${name%3}3" "$1/usr/local/bin/$name"; done' \
    trixie "$1.partial" \
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main"
mv "$1.partial" "$1"
