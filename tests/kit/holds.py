"""What a runner keeps of a step that holds, and calls of it one by one."""

from apache_beam import pvalue
from apache_beam.coders import BytesCoder
from apache_beam.utils.timestamp import Timestamp

from transforms.batches import LazyBatch
from transforms.slices import AdvanceSlices


class Bag:
    def __init__(self, spec):
        self.coder, self.data, self.decoded = spec.coder, [], 0

    def read(self):
        self.decoded += len(self.data)
        return iter([self.coder.decode(data) for data in self.data])

    def add(self, value):
        self.data.append(self.coder.encode(value))

    def clear(self):
        self.data = []


class Value:
    def __init__(self):
        self.data, self.reads = None, 0

    def read(self):
        self.reads += 1
        return self.data

    def write(self, data):
        assert BytesCoder().decode(BytesCoder().encode(data)) == data
        self.data = data


class Timer:
    def __init__(self):
        self.at = None

    def set(self, timestamp):
        assert timestamp.micros % 1000 == 0  # engines cut the rest off
        self.at = timestamp


def held(end_us, batch):
    """A batch of the slice that ends then as it comes to a step of the first phase, and its timestamp."""
    return (0, (end_us + 1000, LazyBatch(batch))), Timestamp(micros=end_us + 1000)


def plain(output):
    """What is handed on, without its tag and timestamp."""
    output = output.value if isinstance(output, pvalue.TaggedOutput) else output
    return getattr(output, "value", output)


class State:
    """What a runner keeps of one shard, encoded; it can be copied, as by a checkpoint."""

    def __init__(self):
        self.cells = {
            name: Bag(getattr(AdvanceSlices, name.upper())) for name in ("pending", "later", "base", "recent")
        }
        self.cells["shard_state"] = Value()
        self.timer = Timer()

    def copy(self):
        other = State()
        for name, cell in self.cells.items():
            other.cells[name].data = cell.data if isinstance(cell.data, (bytes, type(None))) else list(cell.data)
        other.timer.at = self.timer.at
        return other

    def put(self, worker, items):
        """One bundle; what goes on at once."""
        worker.start_bundle()
        found = []
        for end, batch in items:
            found += worker.process(*held(end, batch), release=self.timer, **self.cells)
        return found

    def fire(self, worker, until_us=None):
        fired = self.timer.at if until_us is None else Timestamp(micros=until_us)
        self.timer.at = None
        yield from worker.release(0, fired, release=self.timer, **self.cells)

    def run(self, worker, items):
        """The rows handed on, once all timers have fired."""
        assert self.put(worker, items) == []
        found = []
        while self.timer.at is not None:
            found += [plain(output) for output in self.fire(worker)]
        return found

    def bytes(self):
        """Of the history."""
        return sum(batch.nbytes for name in ("base", "recent") for batch in self.cells[name].read())

    def rows(self):
        return sum(batch.num_rows for name in ("base", "recent") for batch in self.cells[name].read())


def make_worker(step):
    made = AdvanceSlices(step)
    made.setup()
    return made
