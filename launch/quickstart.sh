#!/usr/bin/env bash
# Set up if needed, then decode held-out puzzles with every method and save the picture.
#   launch/quickstart.sh [--count N] [--out DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup.sh
exec .venv/bin/jaxllm quickstart "$@"
