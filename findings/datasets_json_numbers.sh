#!/usr/bin/env bash
# datasets 5.2.0 reads a JSON lines column that mixes numbers and texts as its Json type, which parses the texts again:
# a missing label written "-" becomes 0, an id "007" becomes 7. And where any other column has cells of several types,
# decimal numbers are rounded to ten places, so that 3.2e-11 becomes 0.0. Nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
HF_HUB_OFFLINE=1 HF_HOME="$folder/hf" "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import datasets

folder = Path(sys.argv[1])


def read(rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))


mixed = [31, "-", "007", "1e"]
ages = read([{"age": age} for age in mixed])
print("written", mixed, "read", ages["age"][:], ages.features)
assert ages["age"][:] == [31, 0, 7, 1.0]

fluxes = [3.2e-11, 0.1234567890123456]
beside = read([{"flux": fluxes[0], "note": 1}, {"flux": fluxes[1], "note": "a"}])
print("written", fluxes, "read", beside["flux"][:])
assert beside["flux"][:] == [0.0, 0.123456789]
alone = read([{"flux": flux} for flux in fluxes])
print("without the column beside it", alone["flux"][:])
assert alone["flux"][:] == fluxes
PYTHON
echo "datasets 5.2.0 behaves as described"
