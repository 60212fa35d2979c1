#!/usr/bin/env python3
"""The agent beside the limits of this machine and beside rsyslog, on the same file and to the same kind of place.

Each pair runs in turn, at least 11 times; what counts is the median of the paired ratios (limit's time / agent's time), with
quartiles: machines are noisy, single times say little. Every command is printed as it is run. All files live in one directory on
a tmpfs, which is removed at the end.

    bench.py AGENT [--runs 11] [--mib 1024] [--dir /dev/shm/luffly-bench] [--rsyslog DIR]
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

import filters

LINE = (
    '{}.{}.{}.{} - - [23/Nov/2026:10:{:02}:{:02} +0000] "GET /shop/item/{}?ref={} HTTP/1.1" {} {} '
    '"https://example.org/shop/{}" "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"\n'
)


def access_log(path, mib):
    """Lines of about 213 bytes: 16 MiB of different ones, repeated. One of 20 has the status 503."""
    pick = random.Random(7)
    block, size = [], 0
    while size < 16 << 20:
        line = LINE.format(
            *(pick.randrange(1, 255) for _ in range(4)), pick.randrange(60), pick.randrange(60), pick.randrange(10**6),
            "%032x" % pick.getrandbits(128), pick.choice([200] * 13 + [304, 304, 404, 404, 500, 500, 503]), pick.randrange(200, 90000),
            pick.randrange(1000))
        block.append(line)
        size += len(line)
    block = "".join(block).encode()
    with open(path, "wb") as out:
        written = 0
        while written < mib << 20:
            out.write(block)
            written += len(block)
    return written


def run(command, before=None):
    """Wall seconds of a shell command that must succeed."""
    if before:
        before()
    began = time.perf_counter()
    done = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        sys.exit(f"{command}\nfailed with {done.returncode}:\n{done.stderr}")
    return seconds


def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


class Receiver:
    """The peer of whoever sends over TCP: reads, counts, and throws away."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.counted = threading.Semaphore(0)
        self.bytes = 0
        threading.Thread(target=self.receive, daemon=True).start()

    def receive(self):
        into = bytearray(1 << 20)
        while True:
            peer, _ = self.listener.accept()
            self.bytes = 0
            while got := peer.recv_into(into):
                self.bytes += got
            peer.close()
            self.counted.release()

    def wait(self, expected):
        if not self.counted.acquire(timeout=60) or self.bytes != expected:
            sys.exit(f"the receiver got {self.bytes} bytes of {expected}")


class Bench:
    def __init__(self, args):
        self.args, self.rows = args, []
        self.dir = args.dir
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)
        self.log = f"{self.dir}/access.log"
        self.bytes = access_log(self.log, args.mib)
        self.agent = os.path.abspath(args.agent)

    def clean(self):
        """Nothing of the last run is left: no output, no checkpoint."""
        for name in os.listdir(self.dir):
            if name not in ("access.log", "app.json"):
                path = f"{self.dir}/{name}"
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)

    def pair(self, name, ours, theirs, goal, arrived=lambda: None):
        print(f"\n{name}\n  ours:   {ours}\n  beside: {theirs}", flush=True)

        def timed(command):
            self.clean()
            began = time.perf_counter()
            run(command)
            arrived()
            return time.perf_counter() - began

        timed(ours), timed(theirs)  # not counted: warms up
        times = [(timed(theirs), timed(ours)) for _ in range(self.args.runs)]
        ratio = quartiles([beside / own for beside, own in times])
        rate = statistics.median(self.bytes / own / 1e9 for _, own in times)
        self.row(name, ratio, f"{rate:.2f} GB/s", goal)

    def row(self, name, ratio, ours, goal):
        self.rows.append((name, ratio, ours, goal))
        print(f"  → ratio {ratio}, ours {ours}, goal {goal}", flush=True)

    def once(self, output, options=None):
        inline = json.dumps({"output": {output: options}}) if options else "{}"
        return (
            f"{self.agent} --once -http-address=off --data-dir {self.dir}/data -input=file:v2 -filepath {self.log} "
            f"-filter=valid -output={output} -f '{inline}'")

    def throughput(self):
        out = f"{self.dir}/out.log"
        self.pair("file → logr, beside dd", self.once("logr", {"path": out, "max_size": "100GiB"}),
                  f"dd if={self.log} of={out} bs=256K status=none", "≥ 0.7")
        self.pair("file → null, beside cat", self.once("null"), f"cat {self.log} > /dev/null", "≥ 2.5 GB/s")
        self.pair("cat | agent > /dev/null, beside cat | cat",
                  f"cat {self.log} | {self.agent} -http-address=off > /dev/null",
                  f"cat {self.log} | cat > /dev/null", "≥ 0.6")
        self.tcp()
        if self.args.rsyslog and os.path.exists(f"{self.args.rsyslog}/usr/sbin/rsyslogd"):
            self.args.rsyslog = os.path.abspath(self.args.rsyslog)
            self.rsyslog(out)
        else:
            print("\nbeside rsyslog: left out, `make setup` brings it", flush=True)

    def tcp(self):
        socat, libs = shutil.which("socat"), ""
        if self.args.rsyslog and os.path.exists(f"{self.args.rsyslog}/usr/bin/socat"):
            root = os.path.abspath(self.args.rsyslog)
            socat, libs = f"{root}/usr/bin/socat", f"LD_LIBRARY_PATH={root}/usr/lib/x86_64-linux-gnu "
        if not socat:
            print("\nfile → tcp: left out, `make setup` brings socat", flush=True)
            return
        receiver = Receiver()
        address = f"127.0.0.1:{receiver.port}"
        # Beside socat with buffers of our size; its own are 8 KiB and slower.
        self.pair("file → tcp, beside cat and socat", self.once("tcp", {"addresses": [address]}),
                  f"cat {self.log} | {libs}{socat} -u -b 262144 - TCP:{address}", "≥ 0.7", lambda: receiver.wait(self.bytes))

    def rsyslog(self, out):
        """rsyslogd has no end of input: it is ended by its own process id when the whole file has arrived."""
        root = self.args.rsyslog
        conf = f"{self.dir}.rsyslog.conf"
        with open(conf, "w") as file:
            file.write(
                f'module(load="{root}/usr/lib/x86_64-linux-gnu/rsyslog/imfile.so")\n'
                'template(name="raw" type="string" string="%rawmsg%\\n")\n'
                f'input(type="imfile" File="{self.log}" Tag="a" freshStartTail="off" ruleset="out")\n'
                f'ruleset(name="out") {{ action(type="omfile" file="{out}" template="raw" asyncWriting="off" '
                'flushOnTXEnd="off" ioBufferSize="256k") }\n'
                f'global(workDirectory="{self.dir}/state" maxMessageSize="64k")\n')
        binary = f"{root}/usr/sbin/rsyslogd"
        libs = f"{root}/usr/lib/x86_64-linux-gnu"
        ours = self.once("logr", {"path": out, "max_size": "100GiB"})
        print(f"\nfile → file, beside rsyslog\n  ours:   {ours}\n  beside: {binary} -n -f {conf} -i NONE -M {libs}/rsyslog", flush=True)
        runs = max(3, self.args.runs // 3)
        times = [(self.rsyslogd(conf, out, self.bytes - (1 << 18)), run(ours, self.clean)) for _ in range(runs)]
        os.unlink(conf)
        ratio = quartiles([beside / own for beside, own in times])
        rate = statistics.median(self.bytes / own / 1e9 for _, own in times)
        self.row("file → file, beside rsyslog", ratio, f"{rate:.2f} GB/s", "> 1")

    def rsyslogd(self, conf, out, size):
        """Seconds until it has written so much."""
        self.clean()
        os.makedirs(f"{self.dir}/state")
        root = self.args.rsyslog
        libs = f"{root}/usr/lib/x86_64-linux-gnu"
        env = dict(os.environ, LD_LIBRARY_PATH=libs)
        began = time.perf_counter()
        daemon = subprocess.Popen([f"{root}/usr/sbin/rsyslogd", "-n", "-f", conf, "-i", "NONE", "-M", f"{libs}/rsyslog"],
                                  env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while not (os.path.exists(out) and os.path.getsize(out) >= size):
                if daemon.poll() is not None:
                    sys.exit(f"rsyslogd ended: {daemon.stderr.read().decode()}")
                if time.perf_counter() - began > 300:
                    sys.exit("rsyslogd took more than five minutes")
                time.sleep(0.005)
            return time.perf_counter() - began
        finally:
            daemon.terminate()
            daemon.wait(30)

    def footprint(self):
        """Resident memory, idle and at full speed; from the start to ready."""
        self.clean()
        config = f"{self.dir}.toml"
        out = f"{self.dir}/out.log"
        with open(config, "w") as file:
            file.write(
                f'[agent]\ndata_dir = "{self.dir}/data"\n[http]\naddress = "127.0.0.1:0"\n[[pipeline]]\nname = "bench"\n'
                f'input = {{ plugin = "file:v2", paths = ["{self.dir}/in/*.log"] }}\nfilters = [{{ plugin = "valid" }}]\n'
                f'outputs = [{{ plugin = "logr", path = "{out}", max_size = "100GiB" }}]\n')
        os.makedirs(f"{self.dir}/in")
        starts = []
        for _ in range(self.args.runs):
            starts.append(run(f"{self.agent} start -config {config}") * 1000)
            run(f"{self.agent} stop -config {config}")
        self.row("start to ready", "–", f"{quartiles(starts)} ms", "< 50 ms")
        run(f"{self.agent} start -config {config}")
        with open(f"{self.dir}/data/agent.pid") as file:
            pid = int(file.read().split()[0])
        try:
            time.sleep(2)
            self.row("resident memory, idle", "–", f"{rss(pid):.1f} MiB", "< 12 MiB")
            os.link(self.log, f"{self.dir}/in/access.log")
            most = 0
            while not (os.path.exists(out) and os.path.getsize(out) >= self.bytes):
                most = max(most, rss(pid))
                time.sleep(0.01)
            self.row("resident memory, full speed", "–", f"{most:.1f} MiB", "< 40 MiB")
        finally:
            subprocess.run([self.agent, "stop", "-config", config], check=False)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.unlink(config)

    def table(self):
        cpus = os.cpu_count()
        print(f"\n{time.strftime('%Y-%m-%d')}, {platform.machine()}, {cpus} cores, Linux {platform.release()}, "
              f"{self.args.mib} MiB of access log in page cache, {self.args.runs} runs in turn\n")
        print("| what | ratio: median (quartiles) | ours | goal |\n|---|---|---|---|")
        for row in self.rows:
            print("| " + " | ".join(row) + " |")


def rss(pid):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("agent")
    parse.add_argument("--runs", type=int, default=11)
    parse.add_argument("--mib", type=int, default=1024)
    parse.add_argument("--dir", default="/dev/shm/luffly-bench")
    parse.add_argument("--rsyslog", help="where Debian's rsyslog was unpacked to")
    bench = Bench(parse.parse_args())
    try:
        bench.throughput()
        filters.grep(bench)
        bench.footprint()
        filters.keep_json(bench)
        bench.table()
    finally:
        shutil.rmtree(bench.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
