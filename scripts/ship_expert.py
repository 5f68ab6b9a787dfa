"""Put the actor of a finished run in the place of an expert that comes with mfrl, with the record of how it came about.

mfrl train experiment=ant_expert run_dir=runs/ant
python scripts/ship_expert.py runs/ant
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mfrl.collect.ogbench.expert import EXPERTS
from mfrl.collect.ogbench.training import export


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--name", default="ant", help="of the expert (default: ant)")
    parser.add_argument("--out", type=Path, default=EXPERTS, help="the folder (default: that of the package)")
    given = parser.parse_args()
    path, record = export(given.run, given.out, given.name)
    print(f"{path}, {path.stat().st_size / 1e3:.0f} kB\n{json.dumps(record, indent=2)}")


if __name__ == "__main__":
    main()
