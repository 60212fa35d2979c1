"""Filters, beside what a user would take instead. Part of bench.py."""

import json
import os
import random
import shutil
import statistics


def once(bench, source, chain, out, options):
    inline = json.dumps({"filter": options, "output": {"logr": {"path": out, "max_size": "100GiB"}}})
    return (
        f"{bench.agent} --once -http-address=off --data-dir {bench.dir}/data -input=file:v2 -filepath {source} "
        f"-filter={chain} -output=logr -f '{inline}'")


def grep(bench):
    """One line of 20 goes."""
    out = f"{bench.dir}/out.log"
    options = {"grep": {"pattern": '" 503 ', "literal": True, "action": "drop"}}
    bench.pair("file → grep, a literal drops 5 % → logr, beside dd", once(bench, bench.log, "grep", out, options),
               f"dd if={bench.log} of={out} bs=256K status=none", "≥ 0.6")
    bench.pair("the same, beside grep -vF", once(bench, bench.log, "grep", out, options),
               f"LC_ALL=C grep -vF '\" 503 ' {bench.log} > {out}", "–")


def app_json(path, mib):
    """Lines of about 320 bytes, one of 20 with the level error; how many bytes there are in all, and in those."""
    pick = random.Random(7)
    block, kept = [], 0
    size = 0
    while size < 16 << 20:
        level = "error" if pick.randrange(20) == 0 else pick.choice(["info", "info", "debug", "warn"])
        line = json.dumps({
            "ts": "2026-11-23T10:%02d:%02d.%03dZ" % (pick.randrange(60), pick.randrange(60), pick.randrange(1000)),
            "service": pick.choice(["cart", "search", "login", "billing"]),
            "level": level,
            "msg": "request done for item %d, no errors seen" % pick.randrange(10**6),
            "http": {"method": "GET", "path": "/shop/item/%d" % pick.randrange(10**6), "status": pick.choice([200, 304, 404, 500])},
            "trace": "%032x" % pick.getrandbits(128),
            "took": pick.randrange(10**6) / 1000,
            "tags": ["eu", "blue", "v%d" % pick.randrange(20)],
        }, separators=(",", ":")) + "\n"
        block.append(line)
        size += len(line)
        kept += len(line) if level == "error" else 0
    block = "".join(block).encode()
    with open(path, "wb") as file:
        times = -(-(mib << 20) // len(block))
        for _ in range(times):
            file.write(block)
    return times * len(block), times * kept


def keep_json(bench):
    from bench import quartiles, run

    os.unlink(bench.log)  # room for the next
    source, out = f"{bench.dir}/app.json", f"{bench.dir}/out.log"
    size, kept = app_json(source, bench.args.mib)
    ours = once(bench, source, "json", out, {"json": {"keep": {"level": "error"}}})
    seconds = []

    def compare(name, theirs, runs, goal):
        """theirs: a function that answers seconds."""
        print(f"\n{name}\n  ours:   {ours}", flush=True)
        times = []
        for _ in range(runs):
            other = theirs()
            own = run(ours, bench.clean)
            if os.path.getsize(out) != kept:
                raise SystemExit(f"kept {os.path.getsize(out)} bytes instead of {kept}")
            seconds.append(own)
            times.append((other, own))
        rate = size / statistics.median(own for _, own in times) / (1 << 20)
        bench.row(name, quartiles([other / own for other, own in times]), f"{rate:.0f} MiB/s", goal)

    plain = f"LC_ALL=C grep -F '\"level\":\"error\"' {source} > {out}"
    print(f"  beside: {plain}")
    compare("json keeps 5 %, beside grep -F on the text", lambda: run(plain, bench.clean), bench.args.runs, "≥ 600 MiB/s")
    jq = shutil.which("jq")
    unpacked = f"{bench.args.rsyslog}/usr/bin/jq" if bench.args.rsyslog else ""
    if os.path.exists(unpacked):
        jq = f"LD_LIBRARY_PATH={bench.args.rsyslog}/usr/lib/x86_64-linux-gnu {unpacked}"
    few = max(3, bench.args.runs // 4)
    if jq:
        # It takes a minute for a GiB: a sixteenth is enough to know its pace.
        part = size // 16
        command = f"head -c {part} {source} | {jq} -c 'select(.level == \"error\")' > {out} 2> /dev/null || true"
        print(f"  beside: {command}, times 16")
        compare("json keeps 5 %, beside jq", lambda: run(command, bench.clean) * 16, few, "> 1")
    else:
        print("\nbeside jq: left out, `make setup` brings it", flush=True)
    if bench.args.rsyslog and os.path.exists(f"{bench.args.rsyslog}/usr/sbin/rsyslogd"):
        conf = f"{bench.dir}.rsyslog.conf"
        libs = f"{bench.args.rsyslog}/usr/lib/x86_64-linux-gnu/rsyslog"
        with open(conf, "w") as file:
            file.write(
                f'module(load="{libs}/imfile.so")\nmodule(load="{libs}/mmjsonparse.so")\n'
                'template(name="raw" type="string" string="%rawmsg%\\n")\n'
                f'input(type="imfile" File="{source}" Tag="a" freshStartTail="off" ruleset="out")\n'
                f'ruleset(name="out") {{ action(type="mmjsonparse" cookie="") if $!level == "error" then '
                f'action(type="omfile" file="{out}" template="raw" asyncWriting="off" flushOnTXEnd="off" ioBufferSize="256k") }}\n'
                f'global(workDirectory="{bench.dir}/state" maxMessageSize="64k")\n')
        print(f"  beside: rsyslogd with {open(conf).read()}")
        compare("json keeps 5 %, beside rsyslog's mmjsonparse", lambda: bench.rsyslogd(conf, out, kept - (1 << 18)), few, "> 1")
        os.unlink(conf)
