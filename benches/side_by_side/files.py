#!/usr/bin/env python3
"""Many files, few of them written: what an idle agent costs, how soon a line is delivered, how soon after a rotation, and what ten busy
files cost. The real agent, one `file` input, `valid`, one `logr`; all on one directory on a tmpfs, which is removed at the end. Times
are taken from before the write to when the line stands in the output; a quiet machine, please.

    files.py AGENT [--files 10000] [--rounds 300] [--seconds 5] [--inputs file:v2,file:v1] [--dir /dev/shm/luffly-files]
"""

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time

TICK = os.sysconf("SC_CLK_TCK")


class Agent:
    def __init__(self, args, plugin, many):
        self.dir, self.plugin = f"{args.dir}/{plugin.replace(':', '-')}-{many}", plugin
        os.makedirs(f"{self.dir}/in")
        self.names = [f"{self.dir}/in/f{i}.log" for i in range(many)]
        for name in self.names:
            with open(name, "w") as file:
                file.write("first line of this file\n")
        self.out = f"{self.dir}/out.log"
        config = f"{self.dir}/agent.toml"
        with open(config, "w") as file:
            file.write(
                f'[agent]\ndata_dir = "{self.dir}/data"\n[http]\naddress = "off"\n[[pipeline]]\nname = "files"\n'
                f'input = {{ plugin = "{plugin}", paths = ["{self.dir}/in/*.log"] }}\nfilters = [{{ plugin = "valid" }}]\n'
                f'outputs = [{{ plugin = "logr", path = "{self.out}", max_size = "100GiB" }}]\n')
        self.log = open(f"{self.dir}/log", "w")
        self.process = subprocess.Popen([os.path.abspath(args.agent), "start", "--foreground", "-config", config],
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.until(lambda: self.size() == 24 * many, 120)
        self.outfd = os.open(self.out, os.O_RDONLY)
        time.sleep(2)  # the start is over

    def size(self):
        try:
            return os.stat(self.out).st_size
        except FileNotFoundError:
            return 0

    def until(self, done, limit=30):
        """Looks without a pause: the time is what is measured."""
        began = time.perf_counter()
        while not done():
            if self.process.poll() is not None or time.perf_counter() - began > limit:
                sys.exit(f"{self.plugin}: not delivered within {limit} s, see {self.dir}/log")
            time.sleep(0.0001)

    def cpu(self):
        """Seconds of processor so far."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def share(self, work):
        began, before = time.perf_counter(), self.cpu()
        work()
        return 100 * (self.cpu() - before) / (time.perf_counter() - began)

    def deliver(self, write):
        """Milliseconds from before the write until its line stands in the output."""
        size = self.size()
        began = time.perf_counter()
        write()
        self.until(lambda: self.size() > size)
        return (time.perf_counter() - began) * 1000

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.log.close()


def append(name, text):
    with open(name, "a") as file:
        file.write(text)


def rotate(name, n):
    os.rename(name, f"{name}.{n}")
    append(name, "first line after the rotation\n")


def busy(agent, seconds, rate=100_000, step=0.001):
    """So many lines a second in all, in turn to ten files, which are written to a thousand times a second each."""
    files = [open(name, "ab", buffering=0) for name in agent.names[:10]]
    line = b"x" * 99 + b"\n"
    piece = line * int(rate * step / len(files))
    began, written = time.perf_counter(), 0
    while (now := time.perf_counter() - began) < seconds:
        while written < now / step * len(files):
            files[written % len(files)].write(piece)
            written += 1
        time.sleep(step / 2)
    for file in files:
        file.close()
    return written * len(piece)


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("agent")
    parse.add_argument("--files", type=int, default=10_000)
    parse.add_argument("--rounds", type=int, default=300)
    parse.add_argument("--seconds", type=float, default=5)
    parse.add_argument("--inputs", default="file:v2,file:v1")
    parse.add_argument("--dir", default="/dev/shm/luffly-files")
    args = parse.parse_args()
    shutil.rmtree(args.dir, ignore_errors=True)
    rows, pick = [], random.Random(7)
    try:
        for plugin in args.inputs.split(","):
            goal = (lambda text: text) if plugin == "file:v2" else (lambda _: "–")
            agent = Agent(args, plugin, args.files)
            idle = agent.share(lambda: time.sleep(args.seconds * 12))  # with a look at all of them in it, perhaps
            rows.append((plugin, f"{args.files} files, idle: share of a core", f"{idle:.2f} %", goal("< 1 %")))
            times = []
            for i in range(args.rounds):
                time.sleep(pick.uniform(0.005, 0.03))
                times.append(agent.deliver(lambda: append(agent.names[i % 10], "a line\n")))
            times.sort()
            rows.append((plugin, f"append → delivered, {args.rounds} lines to 10 of {args.files} files: median",
                         f"{statistics.median(times):.2f} ms", goal("< 3 ms")))
            rows.append((plugin, "the same: p99", f"{times[int(len(times) * 0.99)]:.2f} ms", goal("< 20 ms")))
            agent.stop()

            agent = Agent(args, plugin, 10)
            times = []
            for i in range(args.rounds // 10):
                time.sleep(pick.uniform(0.05, 0.15))
                times.append(agent.deliver(lambda: rotate(agent.names[i % 10], i)))
            rows.append((plugin, "rotation → its first line delivered: median (most)",
                         f"{statistics.median(times):.2f} ms ({max(times):.2f})", goal("< 20 ms")))
            size, written = agent.size(), []
            share = agent.share(lambda: written.append(busy(agent, args.seconds)))
            agent.until(lambda: agent.size() >= size + written[0])
            rows.append((plugin, "10 files at 100,000 lines/s in all: share of a core", f"{share:.1f} %", goal("< 10 %")))
            agent.stop()
    finally:
        shutil.rmtree(args.dir, ignore_errors=True)
    print("\n| input | what | measured | goal |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
