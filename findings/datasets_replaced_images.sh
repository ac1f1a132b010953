#!/usr/bin/env bash
# datasets 5.2.0 with images named by their paths in a table: the fingerprint of the data set follows the table, and not
# the files that it names. Where an image is replaced by a better one at the same path, the row shows the new one, and
# `map` gives what it computed from the old one, in a new process too, from its cache. Nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pillow==12.0.0
cat >"$folder/read.py" <<'PYTHON'
import sys
from pathlib import Path

import datasets
from PIL import Image

folder, shade = Path(sys.argv[1]), int(sys.argv[2])
Image.new("L", (8, 8), shade).save(folder / "image.png")
table = folder / "table.csv"
if not table.exists():
    table.write_text(f"image\n{folder / 'image.png'}\n")
rows = datasets.load_dataset("csv", data_files=str(table), split="train").cast_column("image", datasets.Image())


def brightest(row):
    return {"brightest": row["image"].getextrema()[1]}


mapped = rows.map(brightest)["brightest"][0]
print("the file holds", shade, "the row", rows[0]["image"].getextrema()[1], "map gives", mapped)
assert rows[0]["image"].getextrema()[1] == shade
assert mapped == 10
PYTHON
for shade in 10 200; do
    HF_HUB_OFFLINE=1 HF_HOME="$folder/hf" "$folder/venv/bin/python" "$folder/read.py" "$folder" "$shade" 2>/dev/null
done
echo "datasets 5.2.0 behaves as described"
