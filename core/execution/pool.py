"""Many runs at once: threads around processes, a bounded queue, results as they come.

    with ExecPool(4) as pool:
        for verdict in pool.imap(verify, candidates):
            ...

The work is in other processes, so threads are enough and nothing of the user's is pickled.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from core.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")


class ExecPool:
    """A pool of threads.

    Args:
        workers: jobs at the same time; None takes the CPUs this process may use.
        exclusive: names of things and how many jobs may hold one at a time, e.g. {"gpu0": 1}.
    """

    def __init__(self, workers: int | None = None, exclusive: Mapping[str, int] | None = None) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"a pool of {workers} workers", where="ExecPool", hint="give at least 1")
        self.workers = workers or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="graft-pool")
        self._holds = {name: threading.BoundedSemaphore(count) for name, count in (exclusive or {}).items()}

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Wait for a thing named in `exclusive`, for a job to use it alone."""
        if name not in self._holds:
            raise ConfigError(f"nothing called '{name}' is exclusive here", hint=f"known: {', '.join(self._holds)}")
        with self._holds[name]:
            yield

    def imap(
        self,
        function: Callable[[T], R],
        jobs: Iterable[T],
        *,
        ordered: bool = True,
        ahead: int | None = None,
        progress: Callable[[int], Any] | None = None,
    ) -> Iterator[R]:
        """Results of `function(job)`, lazily: at most `ahead` jobs (default 2 per worker) are read before they count.

        Args:
            ordered: in the order of the jobs, else as they finish. progress: called with the count of finished jobs.

        Raises:
            whatever `function` raises, at that job's place; jobs not yet started are then dropped.
        """
        limit, source = ahead or 2 * self.workers, iter(jobs)
        waiting: deque[Future[R]] = deque()
        done = 0
        try:
            more = True
            while more or waiting:
                while more and len(waiting) < limit:
                    try:
                        waiting.append(self._threads.submit(function, next(source)))
                    except StopIteration:
                        more = False
                if not waiting:
                    return
                if ordered:
                    ready = [waiting.popleft()]
                else:
                    finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    ready = [future for future in waiting if future in finished]
                    waiting = deque(future for future in waiting if future not in finished)
                for future in ready:
                    result = future.result()
                    done += 1
                    if progress is not None:
                        progress(done)
                    yield result
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Wait for running jobs; drop the others."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()
