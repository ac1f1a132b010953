"""Image files of kinds that Pillow reads and does not write."""

import struct
import zlib


def png_of_16_bits(values):
    """Colours of 16 bits, which Pillow does not write; `values` has 2 channels (grey), 3 or 4."""
    height, width, channels = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_of(values, sample_format, order="<"):
    """A TIFF of one strip of any numbers: of unsigned (1) or signed (2) integers, or floats (3)."""
    values = values.astype(values.dtype.newbyteorder(order))
    height, width = values.shape[:2]
    channels, bits, data = values[0, 0].size, 8 * values.itemsize, values.tobytes()
    behind = 8 + len(data) + 2 + 12 * 10 + 4
    several = {258: [bits] * channels, 339: [sample_format] * channels}
    single = {256: width, 257: height, 259: 1, 262: 1 if channels == 1 else 2, 273: 8, 277: channels, 278: height}
    single[279] = len(data)
    entries, tail = b"", b""
    for tag in sorted([*several, *single]):
        if tag in single:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, single[tag])
        elif channels == 1:
            entries += struct.pack(f"{order}HHIHH", tag, 3, 1, several[tag][0], 0)
        else:
            entries += struct.pack(f"{order}HHII", tag, 3, channels, behind + len(tail))
            tail += struct.pack(f"{order}{channels}H", *several[tag])
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", 10) + entries + bytes(4) + tail


def pgm_of(values, white):
    height, width = values.shape
    return f"P5\n{width} {height}\n{white}\n".encode() + values.astype(">u2").tobytes()
