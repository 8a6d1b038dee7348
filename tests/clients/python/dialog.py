"""What the Python programs of the matrix share: the words, the records, the commands from standard input."""

import queue
import sys
import threading


def say(*words):
    print(*words, flush=True)


def record(partition, offset, key, value):
    say("record", partition, offset, key.decode(), value.decode())


def assigned(partitions):
    say("assigned", *sorted(partitions))


def tens(first, count):
    """Keys and values in tens."""
    numbers = range(first, first + count)
    for start in range(0, count, 10):
        yield [(f"key-{n % 10}".encode(), str(n).encode()) for n in numbers[start : start + 10]]


class Commands:
    """The lines of standard input; `next` gives one without waiting, or nothing."""

    def __init__(self):
        self._lines = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in sys.stdin:
            self._lines.put(line.strip())
        self._lines.put("close")

    def next(self):
        try:
            return self._lines.get_nowait()
        except queue.Empty:
            return None


def main(tasks):
    """Runs the task that the command line names: BOOTSTRAP TASK ARGUMENTS."""
    bootstrap, task, topic, *rest = sys.argv[1:]
    if task in ("produce", "idempotent"):
        first, count = map(int, rest)
        tasks.produce(bootstrap, topic, first, count, task == "idempotent")
    elif task == "consume":
        tasks.consume(bootstrap, topic, int(rest[0]))
    else:
        tasks.group(bootstrap, topic, rest[0])
