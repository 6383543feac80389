"""The progress line of a conversion, from the sidecars that workers leave."""

import sys
import threading
import time
from types import TracebackType

from data import plan


class Progress:
    """Prints records done, rate and time left while the pipeline runs; stops it at too many skips.

    Workers may be other processes or other machines: all that is known of them are their sidecars.
    """

    def __init__(self, folder: plan.Folder, shards: list[plan.Shard], missing: list[str], max_skips: int):
        self._folder, self._max_skips = folder, max_skips
        self._total = sum(len(shard.items) for shard in shards)
        sizes = {shard.name: len(shard.items) for shard in shards}
        self._waiting = {name: sizes[name] for name in missing}
        self._kept = self._total - sum(self._waiting.values())
        self._done, self._skips = self._kept, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> 'Progress':
        if self._kept:
            print(
                f'{self._kept:,} of {self._total:,} records are in finished shards and are kept',
                file=sys.stderr,
            )
        # Sidecars of shards that will be written again would count as done.
        for name in self._waiting:
            self._folder.done_file(name).unlink(missing_ok=True)
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if kind is None:
            self._poll()
            self._print(end='\n')

    def _watch(self) -> None:
        # A terminal line may change every second; a log gets one line in ten.
        pause = 1.0 if self._terminal else 10.0
        while not self._over.wait(pause):
            self._poll()
            self._print(end='\r' if self._terminal else '\n')

    def _poll(self) -> None:
        for name in [name for name in self._waiting if self._folder.done_file(name).exists()]:
            self._done += self._waiting.pop(name)
            self._skips += len(plan.read(self._folder.done_file(name))['skips'])
        if self._skips > self._max_skips and not self._folder.stop.exists():
            message = f'{self._skips} records cannot be used so far, more than max_skips allows'
            plan.write(
                self._folder.stop, {'message': f'{message}; the list is in {self._folder.state}/*.done.json'}
            )

    def _print(self, end: str) -> None:
        seconds = time.monotonic() - self._start
        rate = (self._done - self._kept) / max(seconds, 1e-9)
        left = f'{(self._total - self._done) / rate:,.0f} s left' if rate else 'first shards under way'
        line = f'{self._done:,} of {self._total:,} records, {rate:,.0f} records/s, {left}'
        if self._skips:
            line += f', {self._skips} skipped'
        print(f'{line:<90}', end=end, file=sys.stderr, flush=True)
