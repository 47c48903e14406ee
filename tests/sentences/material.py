"""Made-up text: sentences about a topic that changes slowly, so that neighbours have words in common."""

from __future__ import annotations

import random
from pathlib import Path

TOPICS = [[f"{letter}{number}" for number in ("one", "two", "three", "four", "five", "six")] for letter in "abcdefgh"]


def sentences(count: int, seed: int = 0) -> list[str]:
    generator, topic, found = random.Random(seed), 0, []
    for _ in range(count):
        if generator.random() < 0.1:
            topic = generator.randrange(len(TOPICS))
        length = generator.randrange(2, 9)
        found.append(" ".join(generator.choice([*TOPICS[topic], "the", "of"]) for _ in range(length)) + " .")
    return found


def write_text(path: Path, count: int = 200, seed: int = 0) -> Path:
    path.write_text("\n".join(sentences(count, seed)) + "\n")
    return path


def write_classes(folder: Path, count: int = 60) -> Path:
    """Two classes that a word tells apart in most sentences."""
    folder.mkdir()
    generator = random.Random(1)
    for name, word in (("neg", "bad"), ("pos", "good")):
        lines = []
        for line in sentences(count, seed=len(name) + len(word)):
            lines.append(f"{word if generator.random() < 0.9 else 'plain'} {line}")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder
