#!/usr/bin/env bash
# Formatting, clippy, dependency licences, and the layering that ARCHITECTURE.md promises.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."

cargo fmt --all --check
cargo clippy --locked --workspace --all-targets -- -D warnings

python3 scripts/check-dependencies.py
