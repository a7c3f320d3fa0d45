"""What a run of a suite leaves: one JSON file, which the report and the plots are drawn from."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from bench.case import Case
from bench.measure import Row


@dataclasses.dataclass
class Result:
    """A suite that has been run."""

    suite: str
    size: str
    seconds: float
    machine: dict[str, str]
    versions: dict[str, str]
    absent: dict[str, str]  # contestant: the package that it lacks
    rows: list[Row] = dataclasses.field(default_factory=list)


def save(result: Result, path: Path) -> None:
    """One row a line, so that two runs can be compared with diff."""
    head = {key: value for key, value in vars(result).items() if key != "rows"}
    rows = ",\n".join("  " + json.dumps(_plain(row)) for row in result.rows)
    text = json.dumps(head, indent=1).removesuffix("\n}")
    path.write_text(f'{text},\n "rows": [\n{rows}\n ]\n}}\n')


def load(path: Path) -> Result:
    """What ``save`` has written; ValueError names the file that is something else."""
    try:
        fields = json.loads(path.read_text())
        rows = [
            Row(
                Case(**row["case"] | {"shape": tuple(row["case"]["shape"])}),
                row["results"],
                row["failures"],
            )
            for row in fields.pop("rows")
        ]
        return Result(**fields, rows=rows)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: this is no suite's result: {error!r}") from error


def _plain(row: Row) -> dict[str, Any]:
    plain = dataclasses.asdict(row)
    plain["case"]["file"] = Path(row.case.file).name
    for field in ("devices", "rhs"):
        if not plain["case"][field]:
            del plain["case"][field]
    plain["results"] = {
        name: {metric: [float(f"{x:.5g}") for x in samples] for metric, samples in of.items()}
        for name, of in row.results.items()
    }
    return plain
