#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# dynamo.sh - NVIDIA Dynamo's frontend and mock worker from PyPI under the load of bus.lua,
# and perilune's frontend and worker under the same: bench/dynamo.lua's table.
#
# Dynamo goes into build/venv-dynamo (600 MB). Its own list of packages has one that does
# not build; what these two programs need is named here.
set -euo pipefail
cd "$(dirname "$0")/.."

env=build/venv-dynamo
if [ ! -e $env/installed ]; then
  python3 -m venv $env
  $env/bin/pip install -q --disable-pip-version-check --no-deps \
    ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
  $env/bin/pip install -q --disable-pip-version-check aiohttp msgspec prometheus-client pyzmq \
    tqdm typing-extensions zstandard 'pydantic<=2.13.5' uvloop transformers tokenizers certifi \
    pyyaml
  touch $env/installed
fi
build/perilune lua bench/dynamo.lua $env/bin/python "$@"
