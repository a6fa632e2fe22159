#!/usr/bin/env bash
# Shows that the README's two commands work on a machine that has nothing: makes a fresh Debian below a temporary
# folder, clones the repository's HEAD into it, runs `./run` until SQL is answered, then `./test`, first as root in
# /root, then on a second fresh system as an ordinary user without sudo. Prints a table, and removes everything again.
#
#   sudo scripts/fresh-machine.sh                          all of it; takes an hour or two
#   scripts/fresh-machine.sh --only run --user ordinary    one cell of the table
#   scripts/fresh-machine.sh --parts "lint unit"           ./test lint, ./test unit instead of all of ./test
#   scripts/fresh-machine.sh --suite trixie                Debian 13: no PostgreSQL 15, which must be said clearly
#   scripts/fresh-machine.sh --package FILE.deb            the package instead of a clone; see scripts/package.sh
#   scripts/fresh-machine.sh --clone-to 'a folder/borealis'   where in the home; default borealis
#   scripts/fresh-machine.sh --keep                        leaves the systems' folders, and says where
#
# The package sources are this machine's own (with the -updates and -security suites, so that the newest minor release
# is what gets tested). The Rust toolchain is this user's, mounted read-only; the crates cargo has downloaded already
# are copied. BOREALIS_FRESH_DIR (default /var/cache/borealis-fresh) keeps the base system and downloaded packages for
# the next time. It must be a folder that root alone can write to: what lies there is run as root.
#
# The fresh system has its own mount, process and IPC namespaces, all held by one process: when that ends, the kernel
# ends every process in it and its mounts are gone, whatever happened before. The network is this machine's.
set -Eeuo pipefail
# A signal may come while a function's output goes to a log.
exec 3>&2
trap 'echo "fresh-machine: line $LINENO failed: $BASH_COMMAND" >&3' ERR

die() {
    echo "fresh-machine: $*" >&2
    exit 1
}

# --- inside the new namespaces -----------------------------------------------------------------------------------

# The first process of a fresh system: mounts what a booted machine has, moves into it, says so in $3, and stays.
# Runs as `fresh-machine.sh --hold ROOT TOOLCHAIN READY_FILE`.
hold() {
    local root=$1 toolchain=$2 ready=$3 device part
    mount --make-rprivate /
    # pivot_root wants a mount point.
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    # The settings of this machine's kernel and its devices are not what a package's scripts in here shall change: the
    # parts of /proc that are not about processes are read-only, as in containers, and so is /sys. That is against
    # accidents; root in here has root's capabilities, and could undo it.
    for part in bus fs irq sys sysrq-trigger; do
        [ -e "$root/proc/$part" ] || continue
        mount --bind "$root/proc/$part" "$root/proc/$part"
        mount -o remount,bind,ro,nosuid,nodev,noexec "$root/proc/$part"
    done
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
    mount -t tmpfs -o mode=755,size=64k dev "$root/dev"
    for device in null zero full random urandom tty; do
        : >"$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
    mount -t tmpfs -o mode=1777,nosuid,nodev shm "$root/dev/shm"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    ln -s fd/0 "$root/dev/stdin"
    ln -s fd/1 "$root/dev/stdout"
    ln -s fd/2 "$root/dev/stderr"
    if [ -n "$toolchain" ]; then
        mkdir -p "$root/opt/rust"
        mount --bind "$toolchain" "$root/opt/rust"
        mount -o remount,bind,ro "$root/opt/rust"
    fi
    # Held open across the move: the file is outside the new root.
    exec 9>"$ready"
    mkdir -p "$root/mnt/outside"
    cd "$root"
    pivot_root . mnt/outside
    cd /
    umount -l /mnt/outside
    rmdir /mnt/outside
    echo ready >&9
    exec 9>&-
    # Bash as process 1 reaps the orphans that end up with it, as an init does.
    trap 'exit 0' TERM
    while :; do
        sleep 3600 &
        wait $! || true
    done
}

if [ "${1:-}" = --hold ]; then
    shift
    hold "$@"
fi

# Read as a whole before it runs, since whoever works on the repository meanwhile may change this file.
{
# --- options -----------------------------------------------------------------------------------------------------

suite=bookworm
keep=0
only=
users="root ordinary"
parts=all
package=
clone_to=borealis

usage() {
    sed -n '2,/^set -E/p' "$0" | sed -n 's/^# \{0,1\}//p'
}
needs_value() {
    [ $# -ge 2 ] || { echo "fresh-machine: $1 needs a value; see --help" >&2; exit 2; }
}
while [ $# -gt 0 ]; do
    case "$1" in
        --suite | --only | --user | --parts | --package | --clone-to) needs_value "$@" ;;&
        --suite) suite=$2; shift ;;
        --only) only=$2; shift ;;
        --user) users=$2; shift ;;
        --parts) parts=$2; shift ;;
        --package) package=$(realpath -- "$2"); shift ;;
        --clone-to) clone_to=$2; shift ;;
        --keep) keep=1 ;;
        -h | --help) usage; exit 0 ;;
        *) echo "fresh-machine: unknown option $1; see --help" >&2; exit 2 ;;
    esac
    shift
done
for word in $parts; do
    case "$word" in
        all | lint | unit | cluster) ;;
        *) echo "fresh-machine: --parts: $word is none of lint unit cluster" >&2; exit 2 ;;
    esac
done
case "$suite:$only:$users" in
    bookworm:*:* | trixie:*:*) ;;
    *) echo "fresh-machine: --suite is bookworm or trixie" >&2; exit 2 ;;
esac
case "$only" in '' | run | test) ;; *) echo "fresh-machine: --only is run or test" >&2; exit 2 ;; esac
case "$users" in 'root ordinary' | root | ordinary) ;; *) echo "fresh-machine: --user is root or ordinary" >&2; exit 2 ;; esac
[ -z "$package" ] || [ -f "$package" ] || die "there is no package $package; scripts/package.sh makes one"

# --- what it needs -----------------------------------------------------------------------------------------------

[ "$(id -u)" -eq 0 ] || die "making a system needs root: sudo $0"
lacking=()
for need in debootstrap:debootstrap unshare:util-linux nsenter:util-linux setpriv:util-linux git:git python3:python3; do
    command -v "${need%%:*}" >/dev/null || lacking+=("${need##*:}")
done
[ -z "$package" ] || command -v systemd-nspawn >/dev/null || lacking+=(systemd-container)
[ ${#lacking[@]} -eq 0 ] || die "missing programs; install them first: apt-get install ${lacking[*]}"

repository=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
self=$repository/scripts/$(basename -- "$0")
umask 022
# The name as it is given, without a slash at its end, which would follow a link.
store=$(realpath --no-symlinks -m -- "${BOREALIS_FRESH_DIR:-/var/cache/borealis-fresh}")
[ -e "$store" ] || [ -L "$store" ] || mkdir -p -- "$store"
# Whoever else could put a base system or a package there would be root in the fresh system, or here.
[ -n "$(find "$store" -maxdepth 0 -type d -user root ! -perm /022)" ] ||
    die "$store must be a folder (not a link) of root's that nobody else can write to; choose another with" \
        "BOREALIS_FRESH_DIR"
# As the kernel names it, for the test what is mounted there.
store=$(realpath -- "$store")
mkdir -p "$store/archives-$suite"

toolchain=
cargo_cache=
if [ -z "$package" ]; then
    # Root by sudo has no Rust of its own; then the caller's is meant.
    if [ -n "${SUDO_USER:-}" ] && ! command -v rustc >/dev/null; then
        PATH="$(getent passwd "$SUDO_USER" | cut -d: -f6)/.cargo/bin:$PATH"
        export RUSTUP_HOME="${RUSTUP_HOME:-$(getent passwd "$SUDO_USER" | cut -d: -f6)/.rustup}"
        export CARGO_HOME="${CARGO_HOME:-$(getent passwd "$SUDO_USER" | cut -d: -f6)/.cargo}"
    fi
    toolchain=$(cd "$repository" && rustc --print sysroot) || die "no Rust toolchain to bring along: rustc does not run"
    cargo_cache=${CARGO_HOME:-$HOME/.cargo}/registry
    [ -z "$(git -C "$repository" status --porcelain)" ] ||
        echo "fresh-machine: HEAD is tested; the uncommitted changes in $repository are not" >&2
fi

# --- cleaning up -------------------------------------------------------------------------------------------------

work=
holder=
first_process=
job=
# Ends the fresh system's first process, and so every process in it, and waits until the kernel has done so.
end_system() {
    [ -n "$holder" ] || return 0
    # What this script waits for in there as well: it is the outside parent of a process that must be gone first.
    kill -KILL "$holder" ${job:+"$job"} 2>/dev/null || true
    wait "$holder" 2>/dev/null || true
    # It is process 1 of its namespace: the last to go there.
    while [ -n "$first_process" ] && kill -0 "$first_process" 2>/dev/null; do sleep 0.1; done
    holder=
    first_process=
}

# The control groups that a booted system gets, on a machine where systemd does not make them.
cgroups=()
remove_cgroups() {
    local group
    for group in ${cgroups[@]+"${cgroups[@]}"}; do
        find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
    cgroups=()
}

# Whether something is mounted below a folder. The kernel writes spaces and the like as \040.
has_mounts_below() {
    local folder=$1 point
    while read -r _ _ _ _ point _; do
        printf -v point %b "$point"
        [[ $point != "$folder"/* ]] || return 0
    done </proc/self/mountinfo
    return 1
}

# Removes a folder of ours, unless something is still mounted below it: rm would go on into that.
remove_folder() {
    local folder=$1
    if has_mounts_below "$folder"; then
        echo "fresh-machine: $folder still has mounts below it and is left alone; see /proc/self/mountinfo" >&2
        return 1
    fi
    rm -rf --one-file-system -- "$folder"
}

clean_up() {
    local code=$?
    trap '' INT TERM HUP
    end_system
    remove_cgroups
    if [ -n "$work" ]; then
        if [ "$keep" = 1 ]; then
            mv -- "$work" "$store/kept.${work##*.}"
            echo "fresh-machine: kept: $store/kept.${work##*.}" >&3
        else
            remove_folder "$work" || code=1
        fi
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'echo "fresh-machine: interrupted" >&3; exit 130' INT
trap 'echo "fresh-machine: terminated" >&3; exit 143' TERM HUP

# A script that was killed with SIGKILL took its processes and mounts with it, but not its folder. The lock on a folder
# says whether its script lives, also to one in another container, which cannot see its process. One script at a time
# looks, and has its own folder locked before the next one looks.
exec 6<"$store"
flock 6
for stale in "$store"/system.*; do
    if [ -d "$stale" ] && flock --nonblock "$stale" true; then
        echo "fresh-machine: removing $stale, which an earlier run left" >&2
        remove_folder "$stale"
    fi
done
work=$(mktemp -d "$store/system.XXXXXX")
# Not for the programs it starts (7>&-): they would keep the lock, and the fresh system a way out of its folder.
exec 7<"$work"
flock 7
exec 6<&-
chmod 755 "$work"
logs=${BOREALIS_FRESH_LOGS:-$store/logs}
mkdir -p "$logs"

# Waits for a command as a background job: Bash answers a signal only when a foreground command has ended, and these
# take long.
patiently() {
    # Die with this script, even if that is killed with SIGKILL.
    setpriv --pdeathsig KILL "$@" 7>&- &
    local code=0
    job=$!
    wait "$job" || code=$?
    job=
    return "$code"
}

# --- the base system ---------------------------------------------------------------------------------------------

# Where this machine gets Debian from: the address of the repository with the label $1. With one mirror for all
# suites, a machine of another release serves as well.
mirror() {
    # shellcheck disable=SC2016 # apt-get fills these in.
    apt-get indextargets 'Created-By: Packages' --format '$(ORIGIN)|$(LABEL)|$(SITE)' | sed -n "s/^Debian|$1|//p" | head -n 1
}

base=$store/base-$suite.tar
make_base() {
    local main security root=$work/base
    main=$(mirror Debian)
    security=$(mirror Debian-Security)
    [[ -n $main && -n $security ]] ||
        die "this machine's apt names no Debian repository and its security updates; run apt-get update and look at" \
            "apt-get indextargets"
    echo "fresh-machine: making a base system, once: Debian $suite" >&2
    # Git and certificates are what somebody who clones the repository has.
    patiently unshare --mount --pid --fork --kill-child debootstrap --variant=minbase \
        --cache-dir="$store/archives-$suite" --include=git,ca-certificates "$suite" "$root" "$main" \
        >"$logs/debootstrap-$suite.log" 2>&1 ||
        die "debootstrap failed: $(tail -n 3 "$logs/debootstrap-$suite.log")"
    cat >"$root/etc/apt/sources.list" <<END
deb $main $suite main
deb $main $suite-updates main
deb $security $suite-security main
END
    # As apt found them on the original; a fresh machine has not fetched its lists yet.
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
    tar -C "$root" --numeric-owner --xattrs -cf "$base.new" .
    mv "$base.new" "$base"
    remove_folder "$root"
}

# --- one fresh system --------------------------------------------------------------------------------------------

root=
# Unpacks a system and starts its first process.
start_system() {
    local name=$1 ready=$work/$1.ready
    root=$work/$name
    mkdir "$root"
    tar -C "$root" --numeric-owner --xattrs -xf "$base"
    # Copies, since apt locks the folder, and another run of this script may be at work.
    cp "$store/archives-$suite"/*.deb "$root/var/cache/apt/archives/" 2>/dev/null || true
    # The network is this machine's, and so are its names.
    cat /etc/resolv.conf >"$root/etc/resolv.conf"
    cat /etc/hosts >"$root/etc/hosts"
    if [ -n "$toolchain" ]; then
        # shellcheck disable=SC2016 # For the login shells in there.
        echo 'PATH=/opt/rust/bin:$PATH' >"$root/etc/profile.d/rust.sh"
    fi
    chroot "$root" useradd --create-home --shell /bin/bash --user-group someone
    mkfifo "$ready"
    setpriv --pdeathsig KILL unshare --mount --pid --ipc --fork --kill-child=KILL \
        "$self" --hold "$root" "$toolchain" "$ready" 7>&- &
    holder=$!
    # Opened for both, so that a first process that fails does not leave this one waiting for a writer.
    exec 8<>"$ready"
    until read -r -t 1 <&8; do
        kill -0 "$holder" 2>/dev/null || die "the fresh system's namespaces could not be set up, see above"
    done
    exec 8>&-
    # The line has no end, which read calls a failure.
    read -r first_process _ <"/proc/$holder/task/$holder/children" || [ -n "$first_process" ]
}

# Keeps what apt has downloaded for the next time.
keep_archives() {
    cp --update --no-clobber "$root"/var/cache/apt/archives/*.deb "$store/archives-$suite/" 2>/dev/null || true
}

# Runs a line of shell in the fresh system, as this user, with the environment of a login.
inside() {
    local user=$1 line=$2
    patiently nsenter --target "$first_process" --mount --pid --ipc -- \
        env -i TERM=dumb su --login "$user" --command "$line"
}

# Clones HEAD into a user's home.
clone() {
    local user=$1 home
    home=$(chroot "$root" getent passwd "$user" | cut -d: -f6)
    git -C "$repository" bundle create -q "$root/var/tmp/borealis.bundle" HEAD
    inside "$user" "git clone -q /var/tmp/borealis.bundle ${clone_to@Q}" 2>"$logs/$suite-$user-clone.log" ||
        die "git clone failed: $(cat "$logs/$suite-$user-clone.log")"
    # What this machine's cargo has downloaded needs no second download; what it has unpacked is unpacked anew.
    if [ -d "$cargo_cache/cache" ]; then
        mkdir -p "$root$home/.cargo/registry"
        cp -r "$cargo_cache/cache" "$cargo_cache/index" "$root$home/.cargo/registry/"
        chroot "$root" chown -R "$user:" "$home/.cargo"
    fi
}

# --- the table ---------------------------------------------------------------------------------------------------

rows=()
failures=0
row() {
    local what=$1 who=$2 version=$3 seconds=$4 outcome=$5
    rows+=("$(printf '| %s | %s | %s | %s | %s |' "$what" "$who" "$version" "$seconds" "$outcome")")
    case "$outcome" in passed*) ;; *) failures=$((failures + 1)) ;; esac
    echo "fresh-machine: $what as $who: $outcome after $seconds s" >&2
}
table() {
    echo "| command | Debian $suite, as | PostgreSQL | seconds | outcome |"
    echo '|---|---|---|---|---|'
    [ ${#rows[@]} -eq 0 ] || printf '%s\n' "${rows[@]}"
}
version_inside() {
    local version
    # The server's own word, since that is what was tested.
    version=$(inside root "for p in /usr/lib/postgresql/*/bin/postgres; do [ ! -x \$p ] || \$p --version; done" |
        sed -n 's/^postgres (PostgreSQL) \([0-9.]*\).*/\1/p' | tr '\n' ' ')
    version=${version:-none}
    echo "${version% }"
}

# A port that is free now; the README's if possible.
free_port() {
    python3 - <<'END'
import socket
for port in (5432, 0):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(listener.getsockname()[1])
        break
END
}

# Programs for the inside, as files: two levels of quoting are one too many.
lay_out_programs() {
    mkdir -p "$root/usr/local/lib/fresh"
    # `./run` until SQL is answered, then what Ctrl-C does.
    cat >"$root/usr/local/lib/fresh/run-until-sql" <<'END'
#!/bin/bash
# run-until-sql FOLDER PORT [OPTION…]
set -u
cd "$1" || exit 1
port=$2
shift 2
query() { /usr/lib/postgresql/15/bin/psql -XAtwq -h 127.0.0.1 -p "$port" -U postgres -c "$1"; }
# A process group of its own, as in a terminal: Ctrl-C goes to all of it.
set -m
./run "$@" </dev/null &
job=$!
until answer=$(query 'select version()' 2>/dev/null) && [ -n "$answer" ]; do
    kill -0 "$job" 2>/dev/null || { wait "$job"; echo "./run ended with $? before SQL was answered"; exit 1; }
    sleep 1
done
echo "SQL is answered: $answer"
query 'create table fresh as select generate_series(1, 1000) n' && [ "$(query 'select sum(n) from fresh')" = 500500 ] ||
    { echo "a table could not be made and read"; kill -INT -- "-$job"; wait "$job"; exit 1; }
kill -INT -- "-$job"
wait "$job" || { echo "./run ended with $? after Ctrl-C"; exit 1; }
if query 'select 1' >/dev/null 2>&1; then echo "the server outlived ./run"; exit 1; fi
END
    # What the package is for: a table and pgbench, the server killed under load and started, nothing lost.
    cat >"$root/usr/local/lib/fresh/main-job" <<'END'
#!/bin/bash
# main-job PORT
set -eu
cd
port=$1
PATH=$PATH:/usr/lib/postgresql/15/bin
export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGDATABASE=postgres
query() { psql -XAtwq -c "$1"; }
trap 'borealis down >/dev/null 2>&1 || true' EXIT
borealis up --detach --port "$port"
query 'create table kept (n int primary key)'
pgbench -qi -s 5
# One client that notes each number whose commit was acknowledged, beside pgbench.
(for ((n = 1; ; n++)); do query "insert into kept values ($n)" 2>/dev/null || break; echo "$n" >acknowledged; done) &
pgbench -n -c 4 -T 30 >/dev/null 2>&1 &
sleep 5
borealis instance kill
wait
borealis instance start
acknowledged=$(cat acknowledged)
[ "$(query "select count(*) from kept where n <= $acknowledged")" = "$acknowledged" ] ||
    { echo "of $acknowledged acknowledged rows some are lost"; exit 1; }
same=$(query 'select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)
    and (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)')
[ "$same" = t ] || { echo "the balances differ"; exit 1; }
echo "killed under load: $acknowledged acknowledged rows and $(query 'select count(*) from pgbench_history') transactions are there"
borealis verify
borealis status
borealis down
trap - EXIT
END
    # The service, on a booted system.
    cat >"$root/usr/local/lib/fresh/service-job" <<'END'
#!/bin/bash
set -eu
exec 2>&1
say() { printf '\n# %s\n' "$*"; "$@"; }
query() { /usr/lib/postgresql/15/bin/psql -XAtwq -h 127.0.0.1 -p 5433 -U postgres -c "$1"; }
say systemd-analyze verify --man=no borealis.service
# Nothing may have started it, neither the installation nor the boot.
[ "$(systemctl is-active borealis)" = inactive ] || { echo "it was started by itself"; exit 1; }
begin=$(date +%s%N)
say systemctl start borealis
echo "started after $((($(date +%s%N) - begin) / 1000000)) ms"
# Type=notify: a start that has returned means that SQL is answered, at once.
query 'select version()'
query 'create table kept as select generate_series(1, 1000) n'
say systemctl status --no-pager --lines=30 borealis
say runuser -u borealis -- borealis status --dir /var/lib/borealis/data
# Work, parallel queries and JIT under all the restrictions.
export PATH=$PATH:/usr/lib/postgresql/15/bin PGHOST=127.0.0.1 PGPORT=5433 PGUSER=postgres PGDATABASE=postgres
pgbench -qi -s 5 2>/dev/null
say pgbench -n -c 8 -j 2 -T 10 -M prepared
query 'set jit_above_cost = 0; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;
    explain (analyze, costs off, timing off, summary off) select sum(abalance) from pgbench_accounts'
# What is started by hand is outside the service's control group, and must not be in the way of its next start.
say runuser -u borealis -- borealis instance kill --dir /var/lib/borealis/data
say runuser -u borealis -- borealis instance start --dir /var/lib/borealis/data
before=$(systemctl show -p MainPID --value borealis)
say kill -KILL "$before"
for ((i = 0; i < 120; i++)); do
    sleep 0.5
    after=$(systemctl show -p MainPID --value borealis)
    [ "$after" = 0 ] || [ "$after" = "$before" ] || ! systemctl is-active -q borealis || break
done
[ "$(query 'select sum(n) from kept')" = 500500 ] || { echo "not served again after a kill"; exit 1; }
echo "served again by process $after"
say runuser -u borealis -- borealis verify --dir /var/lib/borealis/data
begin=$(date +%s%N)
say systemctl stop borealis
echo "stopped after $((($(date +%s%N) - begin) / 1000000)) ms: $(systemctl show -p Result --value borealis)"
[ "$(systemctl show -p Result --value borealis)" = success ] || exit 1
if pgrep -u borealis -a; then echo "a process outlived the service"; exit 1; fi
say systemctl start borealis
[ "$(query 'select sum(n) from kept')" = 500500 ]
# An upgrade restarts it, since it runs.
before=$(systemctl show -p MainPID --value borealis)
say dpkg -i /root/borealis_*.deb
after=$(systemctl show -p MainPID --value borealis)
{ [ "$after" != "$before" ] && systemctl is-active -q borealis; } || { echo "an upgrade did not restart it"; exit 1; }
[ "$(query 'select sum(n) from kept')" = 500500 ]
# Removing stops it and leaves the data; so does purging.
say env DEBIAN_FRONTEND=noninteractive apt-get remove -yq borealis
if pgrep -u borealis -a; then echo "a process outlived the package"; exit 1; fi
[ -d /var/lib/borealis/data ] || { echo "removing the package removed the data"; exit 1; }
say env DEBIAN_FRONTEND=noninteractive apt-get purge -yq borealis
[ -d /var/lib/borealis/data ] && [ ! -e /etc/default/borealis ] || { echo "purging left or took the wrong things"; exit 1; }
echo "all is as it should be"
END
    chmod 755 "$root"/usr/local/lib/fresh/*
}

run_command() {
    local user=$1 port options='' log=$logs/$suite-$1-run.log begin=$SECONDS outcome=passed
    port=$(free_port)
    [ "$port" = 5432 ] || options=" --port $port"
    inside "$user" "exec /usr/local/lib/fresh/run-until-sql ${clone_to@Q} $port$options" >"$log" 2>&1 ||
        outcome="FAILED, see $log"
    row "./run$options" "$user" "$(version_inside)" $((SECONDS - begin)) "$outcome"
    [ "$outcome" = passed ]
}

# An ordinary user cannot install; what ./run says root must do is then done, to the letter.
refused_command() {
    local user=$1 log=$logs/$suite-$1-refused.log begin=$SECONDS outcome=passed line
    if inside "$user" "cd ${clone_to@Q} && ./run" >"$log" 2>&1; then
        outcome="FAILED: it did not say that root is needed, see $log"
    else
        line=$(sed -n 's/^  \(apt-get update && .*\)/\1/p' "$log")
        if [ -z "$line" ]; then
            outcome="FAILED: it names no command for root, see $log"
        elif ! inside root "$line" >>"$log" 2>&1; then
            outcome="FAILED: what it told root to run fails, see $log"
        fi
    fi
    row './run, then as root what it says' "$user" "$(version_inside)" $((SECONDS - begin)) "$outcome"
    [ "$outcome" = passed ]
}

test_command() {
    local user=$1 part=$2 log begin=$SECONDS outcome=passed
    log=$logs/$suite-$user-test-${part:-all}.log
    inside "$user" "cd ${clone_to@Q} && ./test $part </dev/null" >"$log" 2>&1 || outcome="FAILED, see $log"
    row "./test${part:+ $part}" "$user" "$(version_inside)" $((SECONDS - begin)) "$outcome"
}

# Debian 13 has PostgreSQL 17 only. Once that is supported, this goes away and the suite is one like the other.
unsupported_commands() {
    local user=$1 log=$logs/$suite-$1-unsupported.log begin=$SECONDS outcome=passed
    inside root 'apt-get update -q' >"$log" 2>&1 || die "apt-get update failed in the fresh system, see $log"
    if inside "$user" "cd ${clone_to@Q} && ./run" >>"$log" 2>&1 ||
        ! grep -q 'no package$' "$log" || ! grep -q 'have PostgreSQL 17 only.* supports 15 only' "$log"; then
        outcome="FAILED: no clear message, see $log"
    fi
    row './run, which must say what is missing' "$user" "$(version_inside)" $((SECONDS - begin)) "$outcome"
    [ "$user" = root ] || return 0
    begin=$SECONDS
    outcome=passed
    log=$logs/$suite-$user-up.log
    if ! inside root "DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends gcc libc6-dev postgresql-17 &&
        cd ${clone_to@Q} && cargo build --release --locked" >"$log" 2>&1; then
        outcome="FAILED, see $log"
    elif inside root "cd ${clone_to@Q} && target/release/borealis up --port $(free_port)" >"$log.said" 2>&1 ||
        ! grep -q 'PostgreSQL 15' "$log.said" || ! grep -q '/usr/lib/postgresql/17/bin' "$log.said"; then
        outcome="FAILED: no clear message, see $log.said"
    fi
    row 'borealis up, which must say the same' "$user" "$(version_inside)" $((SECONDS - begin)) "$outcome"
}

# --- the package -------------------------------------------------------------------------------------------------

install_command() {
    local log=$logs/$suite-package-install.log begin=$SECONDS outcome=passed
    cp -- "$package" "$root/root/"
    # In a system that is not booted nothing is started, as in any container image.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    inside root "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq ./$(basename -- "$package")" \
        >"$log" 2>&1 || outcome="FAILED, see $log"
    row "apt-get install ./$(basename -- "$package")" root "$(version_inside)" $((SECONDS - begin)) "$outcome"
    [ "$outcome" = passed ]
}

job_command() {
    local user=$1 log=$logs/$suite-package-$1.log begin=$SECONDS outcome=passed
    inside "$user" "exec /usr/local/lib/fresh/main-job $(free_port)" >"$log" 2>&1 || outcome="FAILED, see $log"
    row 'borealis up --detach, pgbench, kill, start, verify' "$user" "$(version_inside)" $((SECONDS - begin)) "$outcome"
}

# Boots the system with systemd as its first process and has it run the service's job.
service_command() {
    local log=$logs/$suite-package-service.log begin=$SECONDS outcome=passed version hierarchy group options=()
    version=$(version_inside)
    inside root 'DEBIAN_FRONTEND=noninteractive apt-get install -yq systemd-sysv dbus procps' >"$log" 2>&1 ||
        die "systemd could not be installed in the fresh system, see $log"
    end_system
    keep_archives
    rm -f "$root/usr/sbin/policy-rc.d"
    # A unit of the system's own runs the job and then turns the system off: nothing has to reach into it.
    cat >"$root/etc/systemd/system/fresh-job.service" <<'END'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/usr/local/lib/fresh/service-job >/root/service.log; echo $? >/root/service.code; journalctl --no-pager -u borealis >>/root/service.log'
ExecStopPost=/bin/systemctl --no-block poweroff
TimeoutStartSec=900
[Install]
WantedBy=graphical.target
END
    ln -sf /lib/systemd/system/graphical.target "$root/etc/systemd/system/default.target"
    mkdir -p "$root/etc/systemd/system/graphical.target.wants"
    ln -sf ../fresh-job.service "$root/etc/systemd/system/graphical.target.wants/fresh-job.service"
    if [ ! -d /run/systemd/system ]; then
        # Nobody makes control groups for it here; these are removed at the end.
        options=(--keep-unit)
        for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
            [ -e "$hierarchy/cgroup.procs" ] || continue
            mkdir "$hierarchy/borealis-fresh.$$"
            cgroups+=("$hierarchy/borealis-fresh.$$")
        done
    fi
    # Dies with this script, and the whole system with it.
    (
        for group in ${cgroups[@]+"${cgroups[@]}"}; do echo "$BASHPID" >"$group/cgroup.procs"; done
        exec setpriv --pdeathsig KILL \
            systemd-nspawn --quiet --boot --directory="$root" --register=no --private-network --console=pipe \
            --machine="borealis-fresh-$$" ${options[@]+"${options[@]}"}
    ) </dev/null >>"$log" 2>&1 7>&- &
    holder=$!
    local waited=0
    while kill -0 "$holder" 2>/dev/null && [ $waited -lt 1200 ]; do
        sleep 1
        waited=$((waited + 1))
    done
    end_system
    remove_cgroups
    cat "$root/root/service.log" >>"$log" 2>/dev/null || true
    [ "$(cat "$root/root/service.code" 2>/dev/null)" = 0 ] || outcome="FAILED, see $log"
    row 'systemctl start, status, kill, stop; remove, purge' systemd "$version" $((SECONDS - begin)) "$outcome"
}

# --- all of it ---------------------------------------------------------------------------------------------------

[ -e "$base" ] || make_base
if [ -n "$package" ]; then
    start_system package
    lay_out_programs
    if install_command; then
        for user in $users; do
            [ "$user" = root ] || user=someone
            job_command "$user"
        done
        service_command
    fi
    end_system
else
    for user in $users; do
        [ "$user" = root ] || user=someone
        start_system "$user"
        lay_out_programs
        clone "$user"
        if [ "$suite" = trixie ]; then
            unsupported_commands "$user"
        else
            go_on=1
            [ "$user" = root ] || refused_command "$user" || go_on=0
            [ "$go_on" = 0 ] || [ "$only" = test ] || run_command "$user" || true
            if [ "$go_on" = 1 ] && [ "$only" != run ]; then
                for part in $parts; do
                    [ "$part" != all ] || part=
                    test_command "$user" "$part"
                done
            fi
        fi
        end_system
        keep_archives
        [ "$keep" = 1 ] || remove_folder "$root"
    done
fi
table
[ "$failures" = 0 ] || exit 1
}
