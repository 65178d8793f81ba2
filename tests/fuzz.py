"""``python -m tests.fuzz [SECONDS] [SEED] [CORPUS]``: hand in what nobody would think of, guided by coverage.

Needs atheris, which is the extra ``fuzz``. The inputs are the configurations and target files of ``tests/data``, and
what becomes of them when lines, words and indentation change, or plain bytes do. Each is read as a configuration, as a
target file and as a web configuration, and :mod:`tests.bad_input` checks what must hold. What breaks that is left in
the current directory as ``crash-…``, and ends the fuzzer with a status that is not 0. What reaches new code is kept in
the directory CORPUS.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(include=["trio_sd"]):
    from . import bad_input
    from .mutations import SEEDS, mutated

LONGEST: Final = 8192


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    """Return ``data`` with something about it changed; called by atheris."""
    rng = random.Random(seed)
    if rng.random() < 0.3:
        plain: bytes = atheris.Mutate(data, longest)
        return plain
    return mutated(data, rng)[:longest]


def main(seconds: str = "60", seed: str = "1", corpus: str = "") -> None:
    """Run until the time is over or something breaks."""
    with tempfile.TemporaryDirectory() as directory:
        kept = Path(corpus or directory)
        seeds = Path(directory, "seeds")
        seeds.mkdir()
        for number, content in enumerate(SEEDS):
            (seeds / str(number)).write_bytes(content)
        options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LONGEST}", "-timeout=20"]
        atheris.Setup([sys.argv[0], *options, str(kept), str(seeds)], bad_input.check, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
