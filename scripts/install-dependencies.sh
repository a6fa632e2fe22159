#!/usr/bin/env bash
# Installs what Borealis needs and the machine lacks: PostgreSQL 15 with its contributed programs (pgbench,
# pg_amcheck), a linker for Rust, and Python for the checks in this folder. Does nothing when all is there.
set -euo pipefail

bin=/usr/lib/postgresql/15/bin
missing=()
for program in postgres initdb psql pgbench pg_amcheck pg_waldump; do
    [ -x "$bin/$program" ] || missing+=("$program")
done
extension=/usr/share/postgresql/15/extension/amcheck.control
[ -e "$extension" ] || missing+=(amcheck)
packages=()
[ ${#missing[@]} -eq 0 ] || packages+=(postgresql-15)
command -v python3 >/dev/null || packages+=(python3)
command -v cc >/dev/null || packages+=(gcc libc6-dev)
[ ${#packages[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]-} ${packages[*]}" >&2
    echo "This script knows Debian's apt-get only. Install PostgreSQL 15 with its contrib programs" >&2
    echo "(server, client, pgbench, pg_amcheck, pg_waldump) in $bin, and a C compiler." >&2
    exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "run as root once: apt-get install ${packages[*]}" >&2; exit 1; }
    sudo=(sudo)
fi
echo "installing ${packages[*]}" >&2
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
# Debian would create and start a server of its own; Borealis needs the programs only.
"${sudo[@]}" mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] ||
    echo 'create_main_cluster = false' | "${sudo[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "${packages[@]}" >&2
