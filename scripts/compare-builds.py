#!/usr/bin/env python3
"""Commits, latency and processor time of builds, in alternation, so that whatever else the machine does concerns all.

    python3 scripts/compare-builds.py OLD/borealis NEW/borealis [--rounds 6] [--seconds 15] [--clients 8] [--idle 0]

Each build has a cluster of its own below a temporary folder. Only one of them runs at a time; each round starts it, lets
pgbench's write transaction run, and stops it. Prints each round and the medians. A build may be followed by options for the
first `up`, in one argument: "target/release/borealis --groups 16" beside "target/release/borealis --groups 4" compares the two.
With --idle, each cluster is also left alone for so many seconds after its last round, and the processor time of all its
processes is printed.
"""
import argparse
import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import tempfile
import time

PGBENCH = "/usr/lib/postgresql/15/bin/pgbench"
# Until what a workload left behind is materialized and told.
SETTLE_SECONDS = 10


def run(*command):
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def pgbench(port, *words):
    return run(PGBENCH, "-h", "127.0.0.1", "-p", port, "-U", "postgres", *words, "postgres")


def processor_seconds(process_ids):
    """User and system time so far, of these processes (/proc/PID/stat, proc(5))."""
    ticks = 0
    for process_id in process_ids:
        after_name = pathlib.Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def processes_of(program, folder):
    """The nodes and the driver."""
    status = json.loads(run(program, "status", "--json", "--dir", folder))
    return [node["pid"] for node in status["nodes"]] + [each["driver_pid"] for each in status["instances"]]


def idle_share(processes, seconds):
    """Processor time of an idle cluster, in percent of one core."""
    time.sleep(SETTLE_SECONDS)
    before = processor_seconds(processes)
    time.sleep(seconds)
    return 100 * (processor_seconds(processes) - before) / seconds


def one_round(program, folder, port, options, idle_seconds):
    run(program, "up", "--detach", "--port", port, "--dir", folder)
    idle = None
    try:
        processes = processes_of(program, folder)
        before = processor_seconds(processes)
        text = pgbench(port, "-n", "-M", "prepared", "-c", options.clients, "-T", options.seconds)
        used = processor_seconds(processes) - before
        if idle_seconds > 0:
            idle = idle_share(processes, idle_seconds)
    finally:
        run(program, "down", "--dir", folder)
    tps = float(re.search(r"tps = ([\d.]+)", text)[1])
    latency_ms = float(re.search(r"latency average = ([\d.]+)", text)[1])
    processor_us = 1e6 * used / int(re.search(r"actually processed: (\d+)", text)[1])
    return (tps, latency_ms, processor_us), idle


def in_words(figures):
    tps, latency_ms, processor_us = figures
    return f"{tps:.0f} tps, {latency_ms:.2f} ms, {processor_us:.0f} us of nodes and driver for each"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("builds", nargs="+", help="a program, or a program with options for its first `up`")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--idle", type=int, default=0, metavar="SECONDS")
    parser.add_argument("--port", type=int, default=7655)
    options = parser.parse_args()
    if len(set(options.builds)) < max(len(options.builds), 2):
        parser.error("name two or more builds that differ in program or options")
    with tempfile.TemporaryDirectory(prefix="borealis-compare-") as place:
        pathlib.Path(place).chmod(0o755)
        clusters = []
        for index, build in enumerate(options.builds):
            program, *words = shlex.split(build)
            folder = pathlib.Path(place) / str(index)
            run(program, "up", "--detach", "--port", options.port, "--dir", folder, *words)
            pgbench(options.port, "-i", "-q", "-s", "5")
            run(program, "down", "--dir", folder)
            clusters.append((build, program, folder))
        results = {build: [] for build in options.builds}
        for number in range(options.rounds):
            idle_seconds = options.idle if number == options.rounds - 1 else 0
            # Whoever goes first in one round goes last in the next.
            for build, program, folder in clusters[:: 1 if number % 2 == 0 else -1]:
                figures, idle = one_round(program, folder, options.port, options, idle_seconds)
                results[build].append(figures)
                idle_text = "" if idle is None else f", idle {idle:.2f} % of a core"
                print(f"round {number + 1}  {build}: {in_words(figures)}{idle_text}", flush=True)
        for build, rounds in results.items():
            print(f"median   {build}: {in_words([statistics.median(values) for values in zip(*rounds)])}")


if __name__ == "__main__":
    main()
