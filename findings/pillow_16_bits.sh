#!/usr/bin/env bash
# Pillow 12.3.0 and numbers of more than 8 bits:
# - a PNG of 16-bit colours opens as RGB of 8 bits, the lower byte of every number is dropped;
# - a PGM with maxval 4095 (12 bits) is scaled to 65535: its stored 100 becomes 1600;
# - the sample format of a TIFF is ignored: int8 -5 becomes 251, and uint32 3,000,000,000 becomes -1,294,967,296.
# Nothing is said in any of these.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==12.3.0 numpy==2.4.2 tifffile==2026.2.24 pypng==0.20220715.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import png
import tifffile
from PIL import Image

folder = Path(sys.argv[1])


def opened(name):
    with Image.open(folder / name) as image:
        return image.mode, np.asarray(image).ravel().tolist()


png.from_array([[256, 511, 65535]], "RGB;16").save(str(folder / "colours.png"))
print("PNG: written [256, 511, 65535], read", opened("colours.png"))
assert opened("colours.png") == ("RGB", [1, 1, 255])

(folder / "grey.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([100, 4095], ">u2").tobytes())
print("PGM: written [100, 4095], read", opened("grey.pgm"))
assert opened("grey.pgm")[1] == [1600, 65535]

tifffile.imwrite(folder / "signed.tif", np.array([[-5, 100]], np.int8))
print("TIFF of int8: written [-5, 100], read", opened("signed.tif"))
assert opened("signed.tif") == ("L", [251, 100])
tifffile.imwrite(folder / "unsigned.tif", np.array([[3_000_000_000, 1]], np.uint32))
print("TIFF of uint32: written [3000000000, 1], read", opened("unsigned.tif"))
assert opened("unsigned.tif")[1] == [-1294967296, 1]
PYTHON
echo "Pillow 12.3.0 behaves as described"
