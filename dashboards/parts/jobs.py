"""Slow work in the background: what it costs is said before; how far it is, and what it found so far, while it runs; it
can be stopped, and gone on with.

    def without_heads(model, tokens, answer, tell):  # at the top of a module
        found = dict(tell.before or {})  # what this job had found when it was stopped
        for layer in range(n := model.cfg.n_layers):
            if layer not in found:
                found[layer] = patching.ablation(
                    model, tokens, "z", …, layers=[layer], progress=tell.part(layer, n), file=tell.file(f"{layer}")
                )
            tell(layer + 1, n, dict(found))
        return found

    found = jobs.offer(without_heads, answer, name="Without each head", seconds=18, draw=draw)
    if found is not None:
        draw(found)

1. One job runs at a time in this process. Others wait; sessions take turns, however many each of them has waiting.
2. A job runs in a thread, where no hooks are in force, without gradients, and gets all it needs as data: the model,
   tokens, what else it is known by; nothing of streamlit.
3. It is stopped before its next operation on a tensor, wherever that is. What `tell` was given last, and its files,
   are there when the same is asked for again.
4. A job whose session has gone is stopped, and what it holds is let go.
"""

import atexit
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import streamlit as st
import torch
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx
from torch.overrides import TorchFunctionMode

from dashboards.parts.models import Trouble, told
from dashboards.parts.state import LARGEST, chosen, size_of
from dashboards.parts.words import plain, report
from interp.patching.memory import is_out_of_memory

Work = Callable[["Tell"], Any]
Condition = Literal["waiting", "running", "stopped", "failed", "done"]

EVERY = 0.5  # seconds between two looks at a job that runs
GRACE = 5.0  # seconds that a session may be away before it has gone
MOST = 8  # jobs that a session keeps, the last ones


class Stopped(BaseException):
    """A job is to end; no failure, so nothing that handles these takes it for one."""


class Tell:
    """How a job says how far it is, and finds what was done before."""

    def __init__(self, job: "Job") -> None:
        self._job = job
        self.before: Any = job.found

    def __call__(self, done: int | float, total: int | float, found: Any = None) -> None:
        """So much is done, and this was found so far (None: nothing more). It is drawn: nobody writes into it later."""
        self._job.hear(done / total, found)

    def part(self, i: int, n: int) -> Callable[[int, int], None]:
        """For a sweep that is the i-th of n parts: its `progress=`."""
        return lambda done, total: self(i + done / max(1, total), n)

    def file(self, name: str) -> Path:
        """A file that is there until the job is done: the `file=` of a sweep, which then goes on where it stood."""
        return self._job.folder() / name


class Job:
    """Some work, and what became of it. `is_there` says whether the session is that asked for it."""

    def __init__(self, name: str, is_there: Callable[[], bool]) -> None:
        self.name, self.is_there = name, is_there
        self.condition: Condition = "stopped"
        self.share, self.found = 0.0, None  # how much is done, and what was found in it
        self.trouble: Trouble | None = None
        self._work: Work | None = None
        self._began = self._heard = 0.0  # when
        self._share_before = 0.0
        self._halt, self._ended = threading.Event(), threading.Event()
        self._folder: Path | None = None
        self._away_since: float | None = None

    @property
    def is_active(self) -> bool:
        """Whether it runs, or will."""
        return self.condition in ("waiting", "running")

    @property
    def seconds_left(self) -> float | None:
        """How long it takes yet, by what it did since it began, or went on."""
        done = self.share - self._share_before
        if self.condition != "running" or done <= 0:
            return None
        each = (self._heard - self._began) / done
        return max(0.0, each * (1 - self.share) - (time.monotonic() - self._heard))

    @property
    def is_stopping(self) -> bool:
        """Whether it is to end, and has not yet."""
        return self.is_active and self._halt.is_set()

    def wait(self, work: Work) -> None:
        """Be ready to begin, or to go on."""
        self._work, self.trouble, self.condition = work, None, "waiting"
        self._halt.clear()
        self._ended.clear()

    def ended(self, within: int | float) -> bool:
        """Wait until it has; whether it did within so many seconds."""
        return self._ended.wait(within)

    def stop(self, within: int | float = 0.4) -> None:
        """Have it end; come back when it has, or after so many seconds."""
        self._halt.set()
        if QUEUE.drop(self):
            self.condition, self._work = "stopped", None
        elif self.condition == "running":
            self.ended(within)

    def run(self) -> None:
        """Do the work, in this thread."""
        assert self._work is not None
        self._began = self._heard = time.monotonic()
        self._share_before, self.condition = self.share, "running"
        ended: Condition = "stopped"
        try:
            with torch.no_grad(), _Watched(self):
                found = self._work(Tell(self))
            self.found, self.share, ended = found, 1.0, "done"
            self._remove_folder()
        except Stopped:
            if self.has_gone():
                self.found = None
                self._remove_folder()
            if self.found is None and self._folder is None:
                self.share = 0.0  # nothing is there to go on from
        except Exception as error:
            self.trouble, ended = _told(error), "failed"
        self._work = None
        self.condition = ended
        self._ended.set()

    def hear(self, share: float, found: Any) -> None:
        """What its work tells."""
        self.check()
        self.share, self._heard = share, time.monotonic()
        if found is not None:
            self.found = found

    def check(self) -> None:
        """Raise if it is to end."""
        if self._halt.is_set() or self.has_gone():
            raise Stopped

    def has_gone(self) -> bool:
        """Whether its session is away, and has been for a while: a connection may break, and come again."""
        if self.is_there():
            self._away_since = None
            return False
        self._away_since = self._away_since or time.monotonic()
        return time.monotonic() - self._away_since > GRACE

    def folder(self) -> Path:
        """A folder for its files."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="interp-job-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class _Watched(TorchFunctionMode):
    """Within it, each operation on a tensor first sees whether its job is to end."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.job.check()
        return func(*args, **(kwargs or {}))


class Queue:
    """Jobs that wait, by session; a thread does one after the other, as long as there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # in the order of turns
        self._running: tuple[str, Job] | None = None
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        with self._lock:
            return (self._running is not None) + sum(map(len, self._waiting.values()))

    def add(self, session: str, job: Job) -> None:
        """Behind the other jobs of its session."""
        with self._lock:
            self._waiting.setdefault(session, deque()).append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
                self._thread.start()

    def drop(self, job: Job) -> bool:
        """Take a job out; whether it was waiting."""
        with self._lock:
            for session, jobs in self._waiting.items():
                if job in jobs:
                    jobs.remove(job)
                    if not jobs:
                        del self._waiting[session]
                    return True
        return False

    def before(self, job: Job) -> int:
        """How many jobs come before one that waits, with the one that runs."""
        with self._lock:
            self._turn()
            n = int(self._running is not None)
            left = deque(map(list, self._waiting.values()))
        while left:
            jobs = left.popleft()
            if jobs.pop(0) is job:
                break
            n += 1
            left += [jobs] if jobs else []
        return n

    def close(self) -> None:
        """Stop what runs, and begin nothing more: the process ends."""
        with self._lock:
            self._waiting.clear()
            running, thread = self._running, self._thread
        if running is not None and thread is not None:
            running[1].stop(within=0)
            thread.join(2)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            del job  # while there is none, the last one is not held here

    def _next(self) -> Job | None:
        with self._lock:
            self._turn()
            self._running = None
            while self._waiting:
                session, jobs = next(iter(self._waiting.items()))
                job = jobs.popleft()
                if not jobs:
                    del self._waiting[session]
                if job.is_there():
                    self._running = session, job
                    return job
                job.condition = "stopped"
            self._thread = None
            return None

    def _turn(self) -> None:
        """The session whose job runs, or has run, comes last."""
        if self._running is not None and self._running[0] in self._waiting:
            self._waiting.move_to_end(self._running[0])


QUEUE = Queue()
atexit.register(QUEUE.close)


def offer(
    work: Callable[..., Any],
    *key: Hashable,
    name: str,
    seconds: int | float,
    draw: Callable[[Any], None],
    of: str = "",
    start: str = "Measure",
    at_once: bool = False,
    of_prompt: bool = True,
) -> Any | None:
    """What `work(model, tokens, *key, tell)` found on what is on show; None until it has, and what is to be said.

    First that is a button, and the `seconds` that it takes, with what `of`; then how far it is, and `draw` of what it
    found so far. Jobs are known by the weights, the tokens, `work`'s name and `key`, as in `state.cached`, and a
    session keeps the last ones. On a page each has another `name`. With `at_once` it waits for no button. One that is
    not `of_prompt` is of the model alone: `work(model, *key, tell)`, whatever the tokens.
    """
    now = chosen()
    jobs: OrderedDict[Hashable, Job] = st.session_state.setdefault("_jobs", OrderedDict())
    of_what = (now.model, now.tokens) if of_prompt else (now.model,)
    tokens = tuple(now.tokens.flatten().tolist()) if of_prompt else ()
    known = (now.fingerprint, tokens, work.__module__, work.__qualname__, key)
    job = jobs.get(known)
    if job is not None and job.condition == "done":
        jobs.move_to_end(known)
        return job.found
    slug = "job_" + re.sub(r"\W+", "_", name.lower())
    if job is None:
        job = Job(name, _presence())
    begin = partial(_begin, jobs, known, job, partial(work, *of_what, *key))
    if at_once and known not in jobs:
        begin()
        job.ended(within=2 * seconds + 0.2)
        if job.condition == "done":
            return job.found
    with st.container(key=slug):
        if job.is_active:
            st.fragment(_going_on, run_every=EVERY)(job, slug, draw)
        else:
            _at_rest(job, slug, seconds, of, start, begin)
            if job.found is not None:
                draw(job.found)
        _of_this_session(jobs, job, slug)
    return None


def in_words(seconds: int | float) -> str:
    """A time, roughly."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _going_on(job: Job, slug: str, draw: Callable[[Any], None]) -> None:
    """How far a job is; looked at again and again."""
    if not job.is_active:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        if job.condition == "waiting":
            n = QUEUE.before(job)
            st.info(f"{plain(job.name)}: waits; {n} {'job comes' if n == 1 else 'jobs come'} before it.")
        else:
            left = job.seconds_left
            said = ", stopping" if job.is_stopping else "" if left is None else f", {in_words(left)} left"
            st.progress(min(job.share, 1.0), f"{plain(job.name)}: {job.share:.0%}{said}")
        st.button("Stop", key=f"{slug}_stop", on_click=job.stop, icon=":material/stop:")
    if job.found is not None:
        draw(job.found)


def _at_rest(job: Job, slug: str, seconds: float, of: str, start: str, begin: Callable[[], None]) -> None:
    """What is said of a job that neither runs nor waits, and the button that changes it."""
    words, icon = start, ":material/play_arrow:"
    if job.trouble is not None:
        report(job.trouble, slug)
        words, icon = "Try again", ":material/replay:"
    elif job.share:
        left = in_words(seconds * (1 - job.share))
        st.info(f"{plain(job.name)}: stopped at {job.share:.0%}; about {left} are left.", icon=":material/pause:")
        words = "Go on"
    else:
        what = f"{plain(of)}: about" if of else "About"
        st.info(f"{what} {in_words(seconds)}.", icon=":material/timer:")
    st.button(words, key=f"{slug}_start", on_click=begin, icon=icon)


def _of_this_session(jobs: Mapping[Hashable, Job], job: Job, slug: str) -> None:
    """What else this session has running, of other prompts or other choices."""
    for i, other in enumerate(other for other in jobs.values() if other is not job and other.is_active):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"Also asked for, of other choices or another prompt: {plain(other.name)}.")
            st.button("Stop that", key=f"{slug}_other_{i}", on_click=other.stop, type="tertiary")


def _begin(jobs: OrderedDict[Hashable, Job], known: Hashable, job: Job, work: Work) -> None:
    """Have a job wait for its turn; those that this session had long ago are let go."""
    if job.is_active:
        return
    jobs[known] = job
    jobs.move_to_end(known)
    at_rest = [each for each in jobs if not jobs[each].is_active]
    while at_rest and (len(jobs) > MOST or sum(size_of(each.found) for each in jobs.values()) > LARGEST):
        del jobs[at_rest.pop(0)]
    job.wait(work)
    QUEUE.add(st.session_state.setdefault("_jobs_of", uuid4().hex), job)


def _presence() -> Callable[[], bool]:
    """A function that says, in any thread, whether this session is connected."""
    context = get_script_run_ctx()
    if context is None or not runtime.exists():
        return lambda: True  # no server: this session lives as long as its script
    return partial(runtime.get_instance().is_active_session, context.session_id)


def _told(error: Exception) -> Trouble:
    is_full = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))
    cure = "Take a shorter prompt, or fewer parts at once." if is_full else "Try again, or with other choices."
    return replace(told(error), cure=f"{cure} The model is as it was.")
