#!/usr/bin/env python3
"""A switch between the hosts of a test: each host is a network namespace whose cable ends here.

    switch.py RULES NAME=INTERFACE@PLACE ...
    switch.py --plain INTERFACE

The second form is for a host's end of its cable: the host then sends frames as they would be on a wire, with their checksums.

Frames between hosts of different places take DELAY_S in each direction. The file RULES has a line `FROM TO` for each way that is cut
(`*` is every host); it is read again when it changes. Runs until it is killed.
"""
import ctypes
import fcntl
import heapq
import os
import select
import socket
import struct
import sys
import time

DELAY_S = 0.0005
FRAME_BYTES_MAX = 1 << 17
RULES_INTERVAL_S = 0.02
ETH_P_ALL = 3
SIOCETHTOOL = 0x8946
# Set: transmit checksums, scatter-gather, TCP segmentation, generic segmentation, generic receive. All off: frames pass as they are.
OFFLOADS = [0x17, 0x19, 0x1F, 0x24, 0x2C]
BROADCAST = b"\xff" * 6
PACKET_OUTGOING = 4


def make_plain(descriptor, interface):
    for command in OFFLOADS:
        # struct ethtool_value behind the pointer of struct ifreq.
        value = ctypes.create_string_buffer(struct.pack("II", command, 0), 8)
        request = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
        try:
            fcntl.ioctl(descriptor, SIOCETHTOOL, request)
        except OSError as error:
            print(f"{interface}: {command:#x}: {error}", file=sys.stderr)


class Port:
    def __init__(self, text):
        self.name, rest = text.split("=")
        interface, self.place = rest.split("@")
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        make_plain(self.socket, interface)
        self.socket.bind((interface, 0))
        self.socket.setblocking(False)


def read_rules(path):
    try:
        with open(path) as file:
            return {tuple(line.split()) for line in file if line.strip()}
    except FileNotFoundError:
        return set()


def main():
    rules_path, ports = sys.argv[1], [Port(text) for text in sys.argv[2:]]
    by_socket = {port.socket.fileno(): port for port in ports}
    poll = select.epoll()
    for port in ports:
        poll.register(port.socket.fileno(), select.EPOLLIN)
    # Where each hardware address was seen.
    known, queue, sequence = {}, [], 0
    rules, stamp, looked = read_rules(rules_path), None, 0.0

    def is_cut(source, target):
        return any((a, b) in rules for a in (source, "*") for b in (target, "*"))

    while True:
        now = time.monotonic()
        if now - looked > RULES_INTERVAL_S:
            looked = now
            try:
                newest = os.stat(rules_path).st_mtime_ns
            except FileNotFoundError:
                newest = None
            if newest != stamp:
                rules, stamp = read_rules(rules_path), newest
        while queue and queue[0][0] <= now:
            _, _, port, frame = heapq.heappop(queue)
            try:
                port.socket.send(frame)
            except OSError:
                pass  # Its end is down, or it is full: networks lose frames.
        wait = max(0.0, queue[0][0] - time.monotonic()) if queue else RULES_INTERVAL_S
        for descriptor, _ in poll.poll(wait):
            source = by_socket[descriptor]
            for _ in range(64):
                try:
                    frame, address = source.socket.recvfrom(FRAME_BYTES_MAX)
                except BlockingIOError:
                    break
                except OSError:
                    break
                if address[2] == PACKET_OUTGOING:
                    continue
                known[frame[6:12]] = source
                single = known.get(frame[:6])
                targets = [single] if single and frame[:6] != BROADCAST else ports
                for target in targets:
                    if target is source or is_cut(source.name, target.name):
                        continue
                    delay = DELAY_S if target.place != source.place else 0.0
                    sequence += 1
                    heapq.heappush(queue, (time.monotonic() + delay, sequence, target, frame))


if __name__ == "__main__":
    if sys.argv[1] == "--plain":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            make_plain(any_socket, sys.argv[2])
    else:
        main()
