"""What a user can set of the demonstration and of a reproduction; loads without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from fenchel.errors import InputError, nearest

# Names with hyphens; the module of each has underscores.
NAMES = (
    "teacher-hacking",
    "gkd",
    "f-divergence-losses",
    "fitzpatrick",
    "sparse-topk",
    "moe-routers",
    "joint-ebm",
    "sparse-ot",
)
SCALES = ("small", "medium", "large")

T = TypeVar("T")


def at_scale(scale: str, recipes: Mapping[str, T]) -> T:
    """The recipe of a scale, of one for each of `SCALES`."""
    if scale not in recipes:
        raise InputError(f"scale must be one of {', '.join(recipes)}, received {scale!r}")
    return recipes[scale]


@dataclass
class DemoConfig:
    """The demonstration: a teacher and its students, trained here from real text."""

    out: str = field(default="fenchel-demo", metadata={"help": "directory of the run and its report.html"})
    seed: int = field(default=0, metadata={"help": "first seed"})
    seeds: int = field(default=1, metadata={"help": "number of seeds; the report shows the spread over them"})
    quick: bool = field(default=False, metadata={"help": "a smaller run of about a minute"})
    overwrite: bool = field(
        default=False, metadata={"help": "start again even if the directory holds a finished run"}
    )

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("seeds", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, received {getattr(self, name)}")


@dataclass
class ReproduceConfig:
    """A paper's experiment, run here, and what it says about the paper's claims."""

    name: str | None = field(
        default=None, metadata={"help": "which one: " + ", ".join(NAMES) + "; not needed with --list"}
    )
    scale: str = field(
        default="small",
        metadata={
            "help": "small: minutes on two processor cores; medium, large: real models, on accelerators"
        },
    )
    out: str = field(
        default="fenchel-reproductions",
        metadata={"help": "directory of the records (NAME.jsonl) and of the runs (NAME-SCALE/report.html)"},
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": "directory of published tables, for those that read some (docs/reproductions.md); by "
            "default they run on what scikit-learn ships"
        },
    )
    seeds: int | None = field(
        default=None, metadata={"help": "number of seeds; by default the recipe's, at least 3"}
    )
    overwrite: bool = field(default=False, metadata={"help": "start again even if there is a finished run"})
    list: bool = field(default=False, metadata={"help": "show every claim and its last verdict, run nothing"})

    def __post_init__(self) -> None:
        if self.list:
            return
        if self.name is None:
            raise InputError(f"reproduce needs a name: {', '.join(NAMES)}; or --list")
        if self.name not in NAMES:
            raise InputError(
                f"unknown reproduction {self.name!r}{nearest(self.name, NAMES)}; there are {', '.join(NAMES)}"
            )
        if self.scale not in SCALES:
            raise InputError(f"scale must be one of {', '.join(SCALES)}, received {self.scale!r}")
        if self.seeds is not None and self.seeds < 1:
            raise InputError(f"seeds must be at least 1, received {self.seeds}")
