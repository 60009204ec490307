"""What kind of file this is, by its first bytes: the kinds we read, and the others a download may turn out to be."""

from __future__ import annotations

from pyclattn.weights.source import Source

ZIP, LEGACY, SAFETENSORS = "a file of torch.save (zip)", "a file of torch.save (legacy)", "safetensors"
UNKNOWN = "of a kind that is not known"

# A legacy file is a row of pickles; the first holds this number alone: LONG1 of 10 bytes.
LEGACY_START = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"\x93NUMPY", "a NumPy .npy file: read it with numpy.load"),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"ggml", "a GGML file (llama.cpp)"),
    (b"lmgg", "a GGML file (llama.cpp)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow): read it with h5py"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it first"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"#!", "a script"),
)
AT_FOUR = ((b"TFL3", "a TensorFlow Lite model"), (b"ORTM", "an ONNX Runtime .ort model"))
TAR = "a tar archive: PyTorch before 0.1.10 wrote such files; load and save it once with a newer PyTorch"


def kind_of(source: Source) -> str:
    """ZIP, LEGACY or SAFETENSORS, or words that say what the file is instead."""
    head = bytes(source.view[:512])
    if not head:
        return "empty (0 bytes): truncated"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ZIP
    if LEGACY_START in head[:32]:
        return LEGACY
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= source.size - 8:
        return SAFETENSORS
    for start, name in STARTS:
        if head.startswith(start):
            return name
    for start, name in AT_FOUR:
        if head[4:].startswith(start):
            return name
    if head[257:262] == b"ustar" or (head[100:107].strip(b"0 \0").isdigit() and head[156:157] in b"05\0"):
        return TAR
    return _by_guess(head)


def _by_guess(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "an HTML or XML page, not the file itself: the download was answered with a page"
    if text[:1] in (b"{", b"["):
        return "JSON text"
    if head[:1] == b"\x80" and 2 <= int.from_bytes(head[1:2], "little") <= 5:
        return "a plain pickle, not a file torch.save wrote"
    if (
        head[:1] == b"\x08"
        and 3 <= int.from_bytes(head[1:2], "little") <= 20
        and head[2:3] in b"\x12\x1a\x22\x28\x32\x3a"
    ):
        return "an ONNX model: pyclattn.load reads it"
    if not head.strip(b"\0"):
        return "zeros: a download that was cut off, perhaps"
    if head.isascii() and head.decode().isprintable():
        return "text"
    return UNKNOWN
