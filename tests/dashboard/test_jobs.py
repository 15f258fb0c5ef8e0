"""Jobs: one at a time, in turns; told, drawn, stopped, gone on with; and never in another's way."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from streamlit.testing.v1 import AppTest
from torch import Tensor

from dashboards.parts import jobs
from dashboards.parts.jobs import QUEUE, Job, Queue, Tell
from interp import HookedGPT, metrics, patching
from interp.interventions import Ablate, Site
from tests.dashboard.app import healthy
from tests.dashboard.browser import Watched, chromium, served

APP = Path(__file__).parent / "slow_app.py"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    until(lambda: len(QUEUE) == 0)


def until(holds: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def job_of(work: jobs.Work, is_there: Callable[[], bool] = lambda: True, name: str = "a job") -> Job:
    job = Job(name, is_there)
    job.wait(work)
    return job


def started(work: jobs.Work, queue: Queue = QUEUE, session: str = "a", **about: Any) -> Job:
    job = job_of(work, **about)
    queue.add(session, job)
    return job


def endless(tell: Tell) -> None:
    """Counts up to a million."""
    for i in range(10**6):
        torch.zeros(10).add(1)
        tell(i + 1, 10**6, [i])
        time.sleep(0.001)


def silent(tell: Tell) -> None:
    """Works on tensors, and never tells."""
    while True:
        torch.zeros(10).add(1)


def without_heads(model: HookedGPT, tokens: Tensor, tell: Tell) -> dict[int, Any]:
    found, n = dict(tell.before or {}), model.cfg.n_layers
    for layer in range(n):
        if layer not in found:
            choices: Any = {"progress": tell.part(layer, n), "file": tell.file(f"{layer}")}
            found[layer] = patching.ablation(model, tokens, "z", metrics.loss(), layers=[layer], **choices)
        tell(layer + 1, n, dict(found))
    return found


def test_a_stopped_job_that_left_nothing_begins_again() -> None:
    def work(tell: Tell) -> None:
        for i in range(10**6):
            tell(i + 1, 10**6)
            time.sleep(0.001)

    job = started(work)
    until(lambda: job.share > 0)
    job.stop()
    until(lambda: not job.is_active)
    assert (job.condition, job.share) == ("stopped", 0.0)


def test_a_job_tells_how_far_it_is_and_what_it_found_so_far() -> None:
    gate = threading.Event()

    def work(tell: Tell) -> str:
        tell(1, 4, "some")
        gate.wait()
        tell(3, 4)
        return "all"

    job = started(work)
    until(lambda: job.share == 0.25)
    assert (job.condition, job.found) == ("running", "some")
    until(lambda: job.seconds_left is not None)
    gate.set()
    until(lambda: not job.is_active)
    assert (job.condition, job.found, job.share, job.seconds_left) == ("done", "all", 1.0, None)


@pytest.mark.parametrize("tells", [True, False])
def test_a_job_is_stopped_before_its_next_operation_whether_it_tells_or_not(tells: bool) -> None:
    after_the_stop = list[bool]()

    def work(tell: Tell) -> None:
        while True:
            after_the_stop.append(job._halt.is_set())
            torch.zeros(10)
            if tells:
                tell(1, 2, "half")

    job = job_of(work)
    QUEUE.add("a", job)
    until(lambda: len(after_the_stop) > 5)
    job.stop(within=60)
    assert job.condition == "stopped"
    assert sum(after_the_stop) <= 1
    assert (job.share, job.found) == ((0.5, "half") if tells else (0.0, None))
    assert job.trouble is None


def test_what_was_stopped_goes_on_to_the_same_numbers_as_unbroken() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    tokens = model.to_tokens("def area(width, height):\n    return width *")
    work = partial(without_heads, model, tokens)
    unbroken = started(work)
    until(lambda: unbroken.condition == "done")
    broken, n_stops = job_of(work), 0
    while broken.condition != "done":
        share = broken.share
        if broken.condition == "stopped":
            broken.wait(work)
        QUEUE.add("a", broken)
        until(lambda: not broken.is_active or broken.share > share)  # noqa: B023
        broken.stop(within=60)
        n_stops += broken.condition == "stopped"
    assert n_stops > 1
    for layer, found in unbroken.found.items():
        torch.testing.assert_close(
            torch.tensor(broken.found[layer].to_numpy()), torch.tensor(found.to_numpy()), rtol=0, atol=0
        )


def test_a_job_that_goes_on_repeats_nothing() -> None:
    worked = []

    def work(tell: Tell) -> list[int]:
        for i in range(len(tell.before or []), 4):
            worked.append(i)
            tell(i + 1, 4, [*(tell.before or []), *range(len(tell.before or []), i + 1)])
            if i == 1 and tell.before is None:
                job._halt.set()
                torch.zeros(1).add(1)
        return [0, 1, 2, 3]

    job = job_of(work)
    QUEUE.add("a", job)
    until(lambda: job.condition == "stopped")
    assert job.found == [0, 1]
    job.wait(work)
    QUEUE.add("a", job)
    until(lambda: job.condition == "done")
    assert worked == [0, 1, 2, 3]


def test_sessions_take_turns_however_many_jobs_each_has_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, order, gate = Queue(), list[str](), threading.Event()
    monkeypatch.setattr(jobs, "QUEUE", queue)

    def work(name: str, tell: Tell) -> None:
        gate.wait()
        order.append(name)

    first = [started(partial(work, f"a{i}"), queue, "a") for i in range(4)]
    until(lambda: first[0].condition == "running")
    other = [started(partial(work, f"b{i}"), queue, "b") for i in range(2)]
    last = started(partial(work, "c0"), queue, "c")
    assert [queue.before(job) for job in [*other, last, *first[1:]]] == [1, 4, 2, 3, 5, 6]
    last.stop()
    assert last.condition == "stopped"
    assert [queue.before(job) for job in [*other, *first[1:]]] == [1, 3, 2, 4, 5]
    gate.set()
    until(lambda: len(queue) == 0)
    assert order == ["a0", "b0", "a1", "b1", "a2", "a3"]
    assert [job.condition for job in [*first, *other]] == ["done"] * 6


def test_a_job_has_no_hooks_but_its_own_and_one_session_is_not_in_the_others_way() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    tokens = model.to_tokens("import os")
    plain = model(tokens).detach()
    found = []

    def work(tell: Tell) -> bool:
        for i in range(20):
            with model.edit([Ablate(Site("z", 1))]):
                found.append(model(tokens))
            tell(i + 1, 20)
        return torch.is_grad_enabled()

    with model.edit([Ablate(Site("mlp_out", 0))]):
        here = model(tokens).detach()
        job = started(work)
        until(lambda: len(found) > 2)
        assert torch.equal(model(tokens), here)
        until(lambda: job.condition == "done")
    assert job.found is False
    with model.edit([Ablate(Site("z", 1))]):
        expected = model(tokens).detach()
    assert (expected - plain).abs().max() > 0.1
    for each in found:
        torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-5)


def test_a_job_that_fails_says_so_and_keeps_what_it_had_and_the_next_one_runs() -> None:
    def work(tell: Tell) -> None:
        tell(1, 2, "half")
        raise ValueError("pos [9] is out of range: there are 7 positions")

    job, after = started(work), started(lambda tell: "fine")
    until(lambda: after.condition == "done")
    assert (job.condition, job.found) == ("failed", "half")
    assert job.trouble is not None
    assert job.trouble.cause == "pos [9] is out of range: there are 7 positions."
    assert job.trouble.cure.endswith("The model is as it was.")
    full = started(lambda tell: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    until(lambda: full.condition == "failed")
    assert full.trouble is not None
    assert "shorter prompt" in full.trouble.cure


def test_a_job_whose_session_has_gone_is_stopped_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "GRACE", 0.1)
    there = threading.Event()
    there.set()
    files = list[Path]()

    class Large(list):
        pass

    def work(tell: Tell) -> None:
        files.append(tell.file("x"))
        files[0].write_text("numbers")
        tell(1, 2, Large())
        silent(tell)

    job = started(work, is_there=there.is_set)
    waiting = started(endless, is_there=there.is_set)
    until(lambda: job.found is not None)
    held = weakref.ref(job.found)
    there.clear()
    until(lambda: len(QUEUE) == 0)
    assert (job.condition, job.share, waiting.condition) == ("stopped", 0.0, "stopped")
    gc.collect()
    assert held() is None
    assert not files[0].parent.exists()


def test_a_connection_that_comes_again_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "GRACE", 5.0)
    there = threading.Event()
    job = started(endless, is_there=lambda: True)
    until(lambda: job.condition == "running")
    job.is_there = there.is_set
    time.sleep(0.2)
    there.set()
    time.sleep(0.1)
    assert job.condition == "running"
    job.stop()


def test_files_stay_while_a_job_is_stopped_and_go_when_it_is_done() -> None:
    files = list[Path]()

    def work(tell: Tell) -> None:
        files.append(tell.file("x"))
        if len(files) == 1:
            files[0].write_text("numbers")
            silent(tell)
        assert files[1].read_text() == "numbers"

    job = started(work)
    until(lambda: files and files[0].exists())
    job.stop(within=60)
    job.wait(work)
    QUEUE.add("a", job)
    until(lambda: not job.is_active)
    assert (job.condition, job.trouble) == ("done", None)
    assert not files[0].parent.exists()


# On a page


def app(**query: str) -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=60)
    for name, value in query.items():
        at.query_params[name] = value
    return healthy(at.run())


def texts(at: AppTest) -> str:
    return "\n".join(each.value for each in (*at.text, *at.info, *at.warning, *at.caption))


def test_the_cost_is_said_before_and_the_result_is_there_after() -> None:
    at = app(step="0.01", n="3")
    assert "40 sums: about 1 s" in texts(at).replace("\\", "")
    at.button(key="job_counting_start").click()
    healthy(at.run())
    until(lambda: len(QUEUE) == 0)
    assert "All 3 numbers" in texts(healthy(at.run()))
    assert not at.button


def test_a_stop_keeps_what_is_done_and_the_same_again_goes_on() -> None:
    at = app(step="0.05", n="30")
    at.button(key="job_counting_start").click().run()
    until(lambda: "numbers so far" in texts(healthy(at.run())))
    at.button(key="job_counting_stop").click().run()
    until(lambda: len(QUEUE) == 0)
    said = texts(healthy(at.run()))
    assert "stopped at" in said
    assert "numbers so far" in said
    at.slider[0].set_value(5).run()
    assert "numbers so far" in texts(healthy(at)), "it is kept"
    at.button(key="job_counting_start").click().run()
    until(lambda: len(QUEUE) == 0)
    found = texts(healthy(at.run()))
    whole = app(step="0.001", n="30")
    whole.button(key="job_counting_start").click().run()
    until(lambda: len(QUEUE) == 0)
    assert "All 30 numbers" in found
    assert found.split("last")[1].split()[0] == texts(healthy(whole.run())).split("last")[1].split()[0]


def test_a_second_session_sees_its_place_and_another_prompt_is_another_job() -> None:
    one, other = app(step="0.1", n="1000"), app(step="0.1", n="1000")
    one.button(key="job_counting_start").click().run()
    other.button(key="job_counting_start").click().run()
    assert "Counting: waits; 1 job comes before it" in texts(healthy(other)).replace("\\", "")
    one.query_params["token"] = "4"
    assert "Also asked for" in texts(healthy(one.run()))
    one.button(key="job_counting_start").click().run()
    assert "waits; 2 jobs come before it" in texts(healthy(one)).replace("\\", "")
    one.button(key="job_counting_other_0").click().run()
    until(lambda: "waits; 1 job comes" in texts(healthy(one.run())).replace("\\", ""))
    one.button(key="job_counting_stop").click().run()
    other.run()
    other.button(key="job_counting_stop").click().run()
    assert "40 sums: about" in texts(healthy(other))


def test_a_failure_is_told_on_the_page_which_stays_usable() -> None:
    at = app(step="0.01", n="5", fails_at="2")
    at.button(key="job_counting_start").click().run()
    until(lambda: len(QUEUE) == 0)
    said = texts(healthy(at.run())).replace("\\", "")
    assert "no number at 2. Try again, or with other choices. The model is as it was." in said
    assert "2 numbers so far" in said
    assert at.button(key="job_counting_start").label == "Try again"


def test_a_session_keeps_its_last_jobs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST", 2)
    at = app(step="0.001", n="2")
    for token in ("1", "2", "3", "4"):
        at.query_params["token"] = token
        at.run()
        at.button(key="job_counting_start").click().run()
        until(lambda: len(QUEUE) == 0)
    assert len(at.session_state["_jobs"]) == 2
    assert "All 2 numbers" in texts(healthy(at.run()))


# In a browser


@pytest.fixture(scope="module")
def slow_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    chromium()
    folder = tmp_path_factory.mktemp("slow")
    with served(
        folder / "log", folder, "--browser.gatherUsageStats=false", "--server.address=localhost", entry=APP
    ) as address:
        yield address


def open_app(watched: Watched, address: str) -> Any:
    watched.page.goto(address)
    watched.page.wait_for_selector("text=The other widget says", timeout=60_000)
    return watched.idle()


@pytest.mark.browser
def test_in_a_browser_progress_moves_others_react_and_a_stop_is_quick(
    slow_app: str, new_page: Callable[..., Watched]
) -> None:
    watched = new_page()
    page = open_app(watched, f"{slow_app}/?step=0.2&n=1000")
    page.get_by_role("button", name="Measure").click()
    so_far = lambda: int(page.get_by_text("numbers so far").inner_text().split()[0])
    page.wait_for_selector("text=numbers so far")
    seen = so_far()
    page.wait_for_function("n => parseInt([...document.querySelectorAll('[data-testid=stText]')].map(e => e.innerText)"
                           ".find(t => t.includes('numbers so far'))) > n", arg=seen + 2)  # fmt: skip
    assert "left" in page.locator('[data-testid="stProgress"]').inner_text()
    page.get_by_role("slider").press("ArrowRight")
    page.wait_for_selector("text=The other widget says 4")
    page.locator('[data-testid="stSidebarNavLink"]', has_text="Second").click()
    page.wait_for_selector("text=Another page")
    page.locator('[data-testid="stSidebarNavLink"]', has_text="First").click()
    page.wait_for_selector("text=numbers so far")
    assert so_far() >= seen + 3, "it went on"
    began = time.monotonic()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("text=stopped at")
    assert time.monotonic() - began < 5  # a busy machine; the job itself is timed above
    kept = so_far()
    page.get_by_role("button", name="Go on").click()
    page.wait_for_selector('[data-testid="stProgress"]')
    assert so_far() >= kept
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("text=stopped at")
    watched.idle()


@pytest.mark.browser
def test_in_a_browser_a_closed_tab_frees_the_queue(slow_app: str, new_page: Callable[..., Watched]) -> None:
    one, other = new_page(), new_page()
    page = open_app(one, f"{slow_app}/?step=0.2&n=100000")
    page.get_by_role("button", name="Measure").click()
    page.wait_for_selector("text=numbers so far")
    second = open_app(other, f"{slow_app}/?step=0.01&n=3")
    second.get_by_role("button", name="Measure").click()
    second.wait_for_selector("text=1 job comes before it")
    page.goto("about:blank")
    second.wait_for_selector("text=All 3 numbers", timeout=60_000)
    other.idle()
