"""A result folder in a bucket: worked on locally, copied back now and then."""

import pathlib
import time

from ivc_jax import cloud
from ivc_jax.evals.running.records import MANIFEST, RECORDS

_SECONDS = 60.0  # between copies of growing records


class Mirror:
    """The local folder of `--out`, and its remote original if there is one.

    Args:
        out: local or remote result folder.
        process: of this run; each has a local folder of its own, as several may share a machine.
    """

    def __init__(self, out: str, process: int) -> None:
        self.remote = out.rstrip("/") if cloud.is_remote(out) else None
        self.local = pathlib.Path(out)
        if self.remote:
            self.local = cloud.find_cache(self.remote, "runs") / str(process)
        self._process = process
        self._last = time.monotonic()

    def pull(self, names: list[str]) -> None:
        """Fetch record files that a run goes on with, and the manifest."""
        if self.remote:
            cloud.pull_file(f"{self.remote}/{MANIFEST}", self.local / MANIFEST)
            for name in names:
                target = self.local / RECORDS / name
                if not target.exists():  # a local file is never behind its copy
                    cloud.pull_file(f"{self.remote}/{RECORDS}/{name}", target)

    def pull_all(self) -> None:
        """Fetch the record files of all processes."""
        if self.remote:
            cloud.pull_folder(f"{self.remote}/{RECORDS}", self.local / RECORDS, "*.jsonl")

    def push(self, names: list[str], now: bool = False) -> None:
        """Copy files, paths within the folder, into the bucket if it is time, or `now`."""
        if not self.remote or not (now or time.monotonic() - self._last > _SECONDS):
            return
        for name in names:
            if (self.local / name).exists():
                cloud.push_file(self.local / name, f"{self.remote}/{name}")
        self._last = time.monotonic()

    def push_all(self) -> None:
        """Copy everything but records of other processes and drawn data into the bucket."""
        if self.remote:
            patterns = "*", "figures/*", "thumbnails/*"
            found = (path for pattern in patterns for path in self.local.glob(pattern))
            # records go by `push`, process by process
            names = [str(path.relative_to(self.local)) for path in found if path.is_file()]
            self.push([name for name in names if not name.startswith(".")], now=True)
