"""A Dockerfile read as a list of instructions; nothing is built."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from abo_pipeline.settings import PROJECT_ROOT

DOCKERFILE = PROJECT_ROOT / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """One instruction, and the stage that it belongs to, counted from 0."""

    stage: int
    name: str
    words: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """Its words without its flags."""
        return tuple(word for word in self.words if not word.startswith("--"))


def instructions(path: Path = DOCKERFILE) -> list[Instruction]:
    """Every instruction in its order."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    return list(_parsed(re.sub(r"\\\n", " ", "\n".join(lines))))


def final_stage() -> list[Instruction]:
    """What makes the image itself."""
    every = instructions()
    return [instruction for instruction in every if instruction.stage == every[-1].stage]


def variables() -> dict[str, str]:
    """The variables that the image sets."""
    pairs = [word.split("=", 1) for each in final_stage() if each.name == "ENV" for word in each.words]
    return dict(pairs)


def copied() -> list[tuple[str, str]]:
    """What the image takes from the checkout: (source, folder in the image)."""
    copies = [each for each in final_stage() if each.name == "COPY" and each.words == each.arguments]
    return [(source, copy.words[-1]) for copy in copies for source in copy.words[:-1]]


def folders() -> list[str]:
    """The folders that the image makes for the user it runs as."""
    made = [each.words for each in final_stage() if each.name == "RUN" and "install" in each.words]
    return [word for words in made for word in words[words.index("install") :] if word.startswith("/")]


def _parsed(text: str) -> Iterator[Instruction]:
    stage = -1
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, _, rest = line.partition(" ")
        stage += name == "FROM"
        yield Instruction(stage, name.upper(), tuple(shlex.split(rest)))
