#!/usr/bin/env python3
"""Time and memory of Borealis on this machine, beside stock PostgreSQL in the same run.

    scripts/bench.py [--seconds 10] [--rounds 2] [--scale 20] [--large-scale 100] [--only SECTION]

Sections: throughput, recovery, memory. Prints Markdown tables. Needs a release build. Throughput alternates
between the systems round by round and reports medians, because machines are noisy.
"""
import argparse
import contextlib
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BOREALIS = TARGET / "release" / "borealis"
POSTGRES = pathlib.Path("/usr/lib/postgresql/15/bin")
SHARED_BUFFERS = "1GB"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def as_server_user(command):
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]


def run(command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def answers(port):
    """Whether SQL is answered, with as little delay as a shell command allows."""
    return subprocess.run(
        [POSTGRES / "psql", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-Atqc", "SELECT 1", "postgres"],
        capture_output=True,
    ).returncode == 0


class Server:
    """Something that answers SQL on a port."""

    name = ""
    port = 0

    def initialize(self, scale):
        run([POSTGRES / "pgbench", *self.where(), "-i", "-q", "-s", scale, "postgres"])

    def where(self):
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]

    def pgbench(self, clients, seconds):
        text = run([POSTGRES / "pgbench", *self.where(), "-n", "-M", "prepared", "-c", clients, "-j",
                    min(clients, 2), "-T", seconds, "postgres"])
        return float(re.search(r"tps = ([0-9.]+)", text).group(1))

    def sql(self, statement):
        return run([POSTGRES / "psql", *self.where(), "-Atqc", statement, "postgres"]).strip()


class Stock(Server):
    """PostgreSQL as distributed, one copy on this disk."""

    def __init__(self, folder, name, settings=()):
        self.name = name
        self.folder = pathlib.Path(folder) / name.replace(" ", "-")
        self.folder.mkdir()
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        self.data = self.folder / "data"
        self.port = free_port()
        self.settings = [f"shared_buffers={SHARED_BUFFERS}", f"port={self.port}", "listen_addresses=127.0.0.1",
                         f"unix_socket_directories={self.folder}",
                         # Killed servers would leave the default kind behind.
                         "dynamic_shared_memory_type=mmap", *settings]
        run(as_server_user([POSTGRES / "initdb", "-D", self.data, "-A", "trust", "-U", "postgres"]), cwd="/")
        self.start()

    def start(self):
        arguments = [part for setting in self.settings for part in ("-c", setting)]
        self.log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(
            [str(c) for c in as_server_user([POSTGRES / "postgres", "-D", self.data, *arguments])],
            stdout=self.log, stderr=self.log, cwd="/")
        while not answers(self.port):
            time.sleep(0.005)

    def kill(self):
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        self.process.wait()
        # The server's children notice within moments; a new server waits for them by itself.
        time.sleep(0.3)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()


class Borealis(Server):
    """Six nodes in three zones, and a stock server on them."""

    name = "Borealis"

    def __init__(self, folder):
        self.dir = pathlib.Path(folder) / "borealis"
        self.port = free_port()
        self.command("up", "--detach", "--port", self.port, "--pg-set", f"shared_buffers={SHARED_BUFFERS}")

    def command(self, *words):
        return run([BOREALIS, *words, "--dir", self.dir])

    def status(self):
        return json.loads(self.command("status", "--json"))

    def kill(self):
        self.command("instance", "kill")
        shutil.rmtree(self.dir / "instances")

    def start(self):
        """Milliseconds from the start command to the first answered query."""
        begin = time.monotonic()
        self.command("instance", "start")
        return (time.monotonic() - begin) * 1000

    def stop(self):
        self.command("down")


def table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


def throughput(folder, arguments):
    print(f"## Throughput: TPC-B, scale {arguments.scale}, `-M prepared`, shared_buffers={SHARED_BUFFERS}, "
          f"{arguments.rounds} rounds of {arguments.seconds} s, median transactions per second\n")
    systems = [
        Stock(folder, "A stock"),
        Stock(folder, "C ceiling", ["fsync=off", "full_page_writes=off"]),
        Borealis(folder),
    ]
    for system in systems:
        system.initialize(arguments.scale)
    rows = []
    for clients in (1, 8, 32):
        results = {system.name: [] for system in systems}
        for _ in range(arguments.rounds):
            for system in systems:
                results[system.name].append(system.pgbench(clients, arguments.seconds))
        median = {name: statistics.median(values) for name, values in results.items()}
        spread = {name: f"{min(v):.0f} to {max(v):.0f}" for name, v in results.items()}
        rows.append([clients, *(f"{median[s.name]:.0f} ({spread[s.name]})" for s in systems),
                     f"{median['Borealis'] / median['A stock']:.2f}"])
    table(["clients", *(s.name for s in systems), "Borealis / A"], rows)
    cost(systems[2], arguments)
    for system in systems:
        system.stop()


def driver_counters(borealis):
    return borealis.status()["instances"][0]["driver"]


def cost(borealis, arguments):
    """What one transaction costs at 32 clients."""
    def transactions():
        return int(borealis.sql("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'"))

    before, first = driver_counters(borealis), transactions()
    borealis.pgbench(32, arguments.seconds)
    time.sleep(1.5)
    after, last = driver_counters(borealis), transactions()
    rows = []
    count = max(last - first, 1)

    def walk(path, old, new):
        if isinstance(new, dict) and isinstance(old, dict):
            for key in new:
                walk(f"{path}{key} ", old.get(key), new[key])
        elif isinstance(new, (int, float)) and isinstance(old, (int, float)) and new > old:
            rows.append([path.strip(), f"{(new - old) / count:.3f}"])

    walk("", before.get("counters", before), after.get("counters", after))
    print(f"Driver counters that rose, per transaction, 32 clients, {count} transactions\n")
    table(["counter", "per transaction"], rows)


def recovery(folder, arguments):
    print("## Recovery: `kill -9` under load, instance directory deleted, to the first answered query\n")
    rows = []
    for label, scale, seconds in (
        (f"scale {arguments.scale}", arguments.scale, arguments.seconds),
        (f"scale {arguments.scale}, ten times the log", arguments.scale, arguments.seconds * 10),
        (f"scale {arguments.large_scale}", arguments.large_scale, arguments.seconds),
    ):
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            os.chmod(inner, 0o755)
            borealis = Borealis(inner)
            borealis.initialize(scale)
            borealis.pgbench(8, seconds)
            times, phases = [], []
            for _ in range(5):
                load = subprocess.Popen(
                    [str(c) for c in (POSTGRES / "pgbench", *borealis.where(), "-n", "-M", "prepared", "-c", 8,
                                      "-T", 60, "postgres")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(2)
                borealis.kill()
                load.wait()
                times.append(borealis.start())
                phases.append(borealis.status()["instances"][0]["last_recovery_ms"])
            borealis.stop()
            # The same load on the stock server, killed the same way.
            stock = Stock(inner, "A stock")
            stock.initialize(scale)
            stock.sql("CHECKPOINT")
            stock.pgbench(8, seconds + 2)
            stock.kill()
            begin = time.monotonic()
            stock.start()
            stock_ms = (time.monotonic() - begin) * 1000
            replay = re.findall(r"redo done at .*elapsed: ([0-9.]+) s", (stock.folder / "log").read_text())
            stock.stop()
        rows.append([label, f"{statistics.median(times):.0f} ms ({min(times):.0f} to {max(times):.0f})",
                     f"{statistics.median(phases):.0f} ms", f"{stock_ms:.0f} ms",
                     f"{replay[-1]} s" if replay else "none"])
    table(["situation", "Borealis: start command to first query", "of which recovery and start, driver's clock",
           "stock: start to first query", "stock: its own replay time"], rows)


def resident_mib(pid, field="VmRSS"):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", text).group(1)) / 1024


def memory(folder, arguments):
    print("## Memory: resident MiB\n")
    borealis = Borealis(folder)
    borealis.command("down")
    borealis.command("up", "--detach")
    time.sleep(3)

    def row(label):
        status = borealis.status()
        nodes = [resident_mib(node["pid"]) for node in status["nodes"]]
        driver = resident_mib(status["instances"][0]["driver_pid"])
        peak = max(resident_mib(node["pid"], "VmHWM") for node in status["nodes"])
        return [label, f"{min(nodes):.0f} to {max(nodes):.0f}", f"{peak:.0f}", f"{driver:.0f}"]

    rows = [row("idle, fresh cluster restarted")]
    borealis.initialize(arguments.scale)
    borealis.pgbench(8, arguments.seconds * 6)
    rows.append(row(f"after {arguments.seconds * 6} s of TPC-B at scale {arguments.scale}"))
    table(["when", "each node", "highest any node had", "driver"], rows)
    borealis.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=20)
    parser.add_argument("--large-scale", type=int, default=100)
    parser.add_argument("--only", choices=["throughput", "recovery", "memory"])
    arguments = parser.parse_args()
    if not BOREALIS.exists():
        sys.exit("build first: cargo build --release")
    for section in (throughput, recovery, memory):
        if arguments.only in (None, section.__name__):
            with tempfile.TemporaryDirectory(prefix="borealis-bench-", dir="/var/tmp") as folder:
                os.chmod(folder, 0o755)
                with contextlib.ExitStack() as stack:
                    # Whatever happens, nothing of the cluster stays running.
                    stack.callback(lambda: subprocess.run(
                        [BOREALIS, "down", "--dir", f"{folder}/borealis"], capture_output=True))
                    section(folder, arguments)


if __name__ == "__main__":
    main()
