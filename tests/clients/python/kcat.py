"""kcat: its command line for each task, and its output put into the matrix's words."""

import re
import subprocess
import sys
import threading

import dialog

FORMAT = "record %p %o %k %s\n"
# Without it kcat gives up when the only broker has closed a connection.
PATIENT = ["-E"]


def produce(bootstrap, topic, first, count, idempotent):
    idempotence = [*PATIENT, "-X", "enable.idempotence=true"] if idempotent else []
    # It reads a few KiB at a time and tells nobody what was acknowledged: small batches, for many requests.
    tens = ["-X", "batch.num.messages=10"]
    kcat = subprocess.Popen(
        ["kcat", "-P", "-b", bootstrap, "-t", topic, "-K", ":", *tens, *idempotence], stdin=subprocess.PIPE
    )
    for ten in dialog.tens(first, count):
        kcat.stdin.write(b"".join(key + b":" + value + b"\n" for key, value in ten))
        kcat.stdin.flush()
    kcat.stdin.close()
    sys.exit(kcat.wait())


def consume(bootstrap, topic, count):
    kcat = ["kcat", "-C", "-b", bootstrap, "-t", topic, "-o", "beginning", "-c", str(count), "-f", FORMAT]
    sys.exit(subprocess.run(kcat).returncode)


def group(bootstrap, topic, name):
    # It can't be told to commit: it does so by itself, here often.
    often = ["-X", "auto.commit.interval.ms=100", "-X", "auto.offset.reset=earliest"]
    kcat = subprocess.Popen(
        ["kcat", *PATIENT, "-b", bootstrap, "-u", "-f", FORMAT, *often, "-G", name, topic],
        stderr=subprocess.PIPE,
        text=True,
    )
    threading.Thread(target=translate, args=(kcat,), daemon=True).start()
    for line in sys.stdin:
        if line.strip() == "commit":
            dialog.say("committed")
    kcat.terminate()
    sys.exit(kcat.wait())


def translate(kcat):
    for line in kcat.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        if "rebalanced" in line:
            assigned = line.partition("assigned:")[2]
            dialog.assigned(map(int, re.findall(r"\[(\d+)\]", assigned)))


dialog.main(sys.modules[__name__])
