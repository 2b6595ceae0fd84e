"""The short form of experiments/reliability/fuzz.py: damaged files and odd values end right, or in one sentence."""

import random
from pathlib import Path

import pytest

from experiments.reliability.fuzz import Fuzz, try_pairs

ENTRIES = ("train, finished", "evaluate", "load_run", "table", "table --dry-run", "config --check")


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_damage_ends_right_or_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # restored at the end
    pairs = [pair for pair in Fuzz(tmp_path / "fuzz").pairs() if pair.entry in ENTRIES]
    outcomes = try_pairs(random.Random(17).sample(pairs, 45), draws=1, number=17)
    assert not {pair: ends for pair, ends in outcomes.items() if any(end.startswith("FAULT") for end in ends)}
    right, refused = (sum(ends == [kind] for ends in outcomes.values()) for kind in ("right", "refused"))
    assert right >= 30 and refused >= 4, (right, refused)  # checkpoints have copies of most that is damaged
