#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy.save_file writes a column-major array (order "F", as np.linalg, pandas and many
# transposes give it) in the order of memory under its row-major shape. It loads as another matrix; nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.2
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

file = Path(sys.argv[1], "features.safetensors")
rows = np.arange(6.0).reshape(2, 3)
save_file({"rows": np.asfortranarray(rows)}, file)
loaded = load_file(file)["rows"]
print("written", rows.tolist(), "read", loaded.tolist())
assert loaded.tolist() == [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]]
save_file({"rows": np.ascontiguousarray(np.asfortranarray(rows))}, file)
assert (load_file(file)["rows"] == rows).all()
PYTHON
echo "safetensors behaves as described"
