"""Compose files read as Docker Compose reads them, as far as this project's files need it; no engine is asked.

Interpolation of variables, the merging of several files, and what a service says. Running what they say is for
``composition``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from abo_pipeline.settings import PROJECT_ROOT

BASE = PROJECT_ROOT / "docker-compose.yml"
OVERRIDES = {name: PROJECT_ROOT / "deploy" / f"compose.{name}.yml" for name in ("gpu", "celery")}

# $$, $NAME, ${NAME}, and ${NAME} with one of - :- ? :? + :+ and a word.
_VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)(?:(:?[-?+])([^}]*))?\}|(.))")

# Lists of which a later file replaces the earlier one's; all others are appended to.
_REPLACED = {"command", "entrypoint", "test"}


class VariableError(ValueError):
    """A variable that must be set is not; the message is that of the compose file."""


def read(*files: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """The files merged in their order, with variables filled in.

    Raises:
        VariableError: a variable that must be set is not.
    """
    merged: dict[str, Any] = {}
    for file in files:
        merged = _merge(merged, _interpolate(yaml.safe_load(file.read_text(encoding="utf-8")), variables))
    return merged


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """A text with variables filled in; what is filled in is taken as it is.

    Raises:
        VariableError: a variable that must be set is not.
        ValueError: a $ that starts nothing.
    """

    def value(match: re.Match[str]) -> str:
        escaped, bare, name, operator, word, wrong = match.groups()
        if escaped:
            return "$"
        if wrong is not None:
            raise ValueError(f"a $ that names no variable: {text!r}")
        found = variables.get(bare or name)
        present = found is not None and (found != "" or not (operator or "").startswith(":"))
        match (operator or "")[-1:]:
            case "-":
                return str(found) if present else word
            case "+":
                return word if present else ""
            case "?" if not present:
                raise VariableError(f"required variable {name} is missing a value: {word}")
        return found or ""

    return _VARIABLE.sub(value, text)


def environment(service: Mapping[str, Any]) -> dict[str, str]:
    """The variables that a service's processes see."""
    given = service.get("environment") or {}
    if isinstance(given, Mapping):
        return {name: str(value) for name, value in given.items()}
    return dict(entry.split("=", 1) for entry in given)


def health_command(service: Mapping[str, Any]) -> list[str]:
    """The words of a service's health check."""
    kind, *words = service["healthcheck"]["test"]
    assert kind in ("CMD", "CMD-SHELL")
    return list(words) if kind == "CMD" else ["sh", "-c", *words]


def _interpolate(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _interpolate(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_interpolate(value, variables) for value in node]
    return substitute(node, variables) if isinstance(node, str) else node


def _merge(first: Any, second: Any, key: str = "") -> Any:
    if isinstance(first, dict) and isinstance(second, dict):
        both = {name: _merge(first[name], second[name], name) for name in first if name in second}
        return first | second | both
    if isinstance(first, list) and isinstance(second, list) and key not in _REPLACED:
        return _appended(first, second) if key == "volumes" else [*first, *(new for new in second if new not in first)]
    return second


def _appended(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Mounts of both; on the same folder the later one counts."""
    return list({mount.split(":")[1]: mount for mount in [*first, *second]}.values())
