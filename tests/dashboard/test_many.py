"""Many sessions on one server: none is in another's way, none sees what another does, and memory stays flat."""

import os
import random
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from interp import HookedGPT
from interp.interventions import Ablate, Site
from tests.dashboard.browser import resident, served
from tests.dashboard.visitor import Visitor, visitor

SESSIONS = 20
SECONDS = float(os.environ.get("INTERP_MANY_SECONDS", "0"))
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not SECONDS, reason="INTERP_MANY_SECONDS says how long; `make bench` takes 120"),
]
PAGES = ("", "lens", "attribution", "memories", "patching", "walkthrough", "training")


def word_of(i: int) -> str:
    """A word that no other session's prompt has, and no model writes by itself."""
    return "q" + "vz"[i % 2] + chr(ord("a") + i) * 4


class Guest(threading.Thread):
    """A session with a prompt and an ablation of its own, which turns pages and checks what it is shown."""

    def __init__(self, address: str, i: int, model: HookedGPT, all_there: threading.Barrier) -> None:
        super().__init__(daemon=True)
        self.address, self.i, self.model, self.all_there = address, i, model, all_there
        self.draw, self.n_runs, self.n_ablations, self.trouble = random.Random(i), 0, 0, list[str]()

    def run(self) -> None:
        try:
            with visitor(self.address) as session:
                session.run(timeout=300)
                self.all_there.wait(300)
                until = time.monotonic() + SECONDS
                while time.monotonic() < until or self.n_runs < 4:
                    self.look(session)
        except Exception as error:
            self.trouble.append(repr(error)[:2000])

    def look(self, session: Visitor) -> None:
        """A page, with a prompt that nobody else has."""
        word = word_of(self.i)
        prompt = f"{word} = {self.draw.randrange(100)}\nprint({word}"
        page = "ablation" if self.n_runs % 2 else self.draw.choice(PAGES)
        own = f"L{self.i % 4}H{self.draw.randrange(8)}"
        drawn = session.run(page, timeout=300, prompt=prompt, abl=own)
        self.n_runs += 1
        said = "\n".join(str(each) for each in drawn)
        others = [j for j in range(SESSIONS) if j != self.i and word_of(j) in said]
        if others:
            self.trouble.append(f"session {self.i} saw the prompts of {others}")
        self.check(prompt, drawn)
        if page == "ablation" and "abl" in session.widgets:
            self.check_ablation(prompt, own, drawn)

    def check(self, prompt: str, drawn: list[Any]) -> None:
        """The likeliest token and its probability, in the sidebar, are this prompt's."""
        probability = self.model(self.model.to_tokens(prompt), last_only=True)[0, -1].softmax(-1).max()
        told = [each.body for each in drawn if "probability" in getattr(each, "body", "")]
        if not any(f"probability {probability:.3g}" in each for each in told):
            self.trouble.append(f"session {self.i}: {probability:.3g} is not in {told[:3]}")

    def check_ablation(self, prompt: str, head: str, drawn: list[Any]) -> None:
        """The difference of the two likeliest tokens' logits, with this session's head and without it."""
        tokens, (layer, n) = self.model.to_tokens(prompt), map(int, head[1:].split("H"))
        whole = self.model(tokens, last_only=True)[0, -1]
        with self.model.edit([Ablate(Site("z", layer, head=n))]):
            without = self.model(tokens, last_only=True)[0, -1]
        first, second = whole.topk(2).indices.tolist()
        found = [float(logits[first] - logits[second]) for logits in (whole, without)]
        told = [each.body.split(" → ") for each in drawn if type(each).__name__ == "Metric"]
        self.n_ablations += 1
        if not any(np.allclose([*map(float, each)], found, atol=1e-3) for each in told):
            self.trouble.append(f"session {self.i} without {head}: {found} is not in {told}")


def test_twenty_sessions_at_once_see_only_their_own(tmp_path: Path) -> None:
    model = HookedGPT.from_pretrained("stdlib-4l").requires_grad_(False)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with served(tmp_path / "log", tmp_path, env=env) as address:
        all_there = threading.Barrier(SESSIONS + 1)
        guests = [Guest(address, i, model, all_there) for i in range(SESSIONS)]
        for guest in guests:
            guest.start()
        all_there.wait(300)
        sizes: list[float] = []
        while any(guest.is_alive() for guest in guests):
            time.sleep(1)
            sizes.append(resident(address))
        assert not [trouble for guest in guests for trouble in guest.trouble]
        assert min(guest.n_runs for guest in guests) >= 2
        assert min(guest.n_ablations for guest in guests) >= 1
        half = len(sizes) // 2
        middle, end = median(sizes[half : half + half // 2]), median(sizes[half + half // 2 :])
        print(f"{sum(guest.n_runs for guest in guests)} pages; server {middle / 1e6:.0f} MB, then {end / 1e6:.0f} MB")
        assert end < 1.1 * middle + 30e6, sizes
