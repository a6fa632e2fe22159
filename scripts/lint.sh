#!/usr/bin/env bash
# Everything that can be said about the code without running it:
#
#   scripts/lint.sh            all of it
#   scripts/lint.sh texts      only what needs no compiler: seconds
#   scripts/lint.sh spelling   that alone
#
# `scripts/test-lint.py` sees each of these checks fail for a fault that it plants.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "$0")/.."

failed=0
# Runs one check; the others run all the same, so that one round of repairs is enough.
check() {
    "$@" || { failed=1; echo "failed: $*" >&2; }
}

spelling() {
    # Words that are right here although a dictionary of misspellings has them, one a line.
    local ignored=scripts/spelling-exceptions.txt files
    if ! command -v codespell >/dev/null; then
        echo "NOT CHECKED: spelling, codespell is not installed (./scripts/install-dependencies.sh lint)" >&2
        return
    fi
    mapfile -t files < <(
        find README.md ARCHITECTURE.md CHANGELOG.md Cargo.toml clippy.toml run test deploy docs packaging scripts crates fuzz \
            -name target -prune -o -type f \( -name '*.md' -o -name '*.rs' -o -name '*.toml' -o -name '*.py' -o -name '*.sh' -o -name '*.yml' \
            -o -name run -o -name test -o -name README.Debian \) -print
    )
    codespell --quiet-level 3 --ignore-words "$ignored" "${files[@]}"
}

case "${1:-all}" in
    all)
        check cargo fmt --all --check
        check cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
        check env RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps --workspace
        ;;
    texts) ;;
    spelling) spelling; exit ;;
    *)
        echo "usage: scripts/lint.sh [texts|spelling]" >&2
        exit 2
        ;;
esac
check python3 scripts/check-dependencies.py
check python3 scripts/check-advisories.py
check python3 scripts/check-source.py
check python3 scripts/check-invariants.py
check python3 scripts/check-constants.py
check python3 scripts/check-documents.py
check python3 scripts/house-figures.py --no-circles
check spelling
exit "$failed"
