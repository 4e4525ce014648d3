"""Names the format of a file that is no .sparsefmt file, since "bad magic" helps nobody."""

from __future__ import annotations

HEAD_SIZE = 64
"""Bytes from the start of a file that `describe` wants to see."""

_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive: of a PyTorch checkpoint, `sparsefmt convert` makes a .sparsefmt file"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80\x02", "a Python pickle: of a PyTorch checkpoint, `sparsefmt convert` makes a .sparsefmt file"),
    (b"\x1f\x8b", "gzip compressed data: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd compressed data: unpack it first"),
    (b"\x93NUMPY", "a .npy array"),
)


def describe(head: bytes, expected: str = "a sparsefmt file") -> str:
    """One sentence on what a file that starts with `head` (HEAD_SIZE bytes, if it has them) is instead of that."""
    if not head:
        return "the file is empty"
    if not head.strip(b"\0"):
        return f"not {expected}: it starts with zeros, as files do after a crash"
    for signature, file_format in _SIGNATURES:
        if head.startswith(signature):
            return f"not {expected} but {file_format}"
    if head[8:11] == b"\xef\xbb\xbf" and expected == "a safetensors file":
        return "its header begins with a byte order mark, which safetensors does not allow: an editor has put it there"
    # before HTML: a header length of 60 starts with the byte of "<"
    if is_safetensors(head):
        return f"not {expected} but safetensors: convert it with `sparsefmt convert`"
    if head.lstrip()[:1] == b"<":
        return f"not {expected} but HTML or XML: the download brought an error or login page"
    if head.startswith(b"\x89SPF"):
        return "a sparsefmt file whose first bytes were changed, as a text-mode transfer does: copy it as binary"
    return f"not {expected}: it starts with {head[:8].hex(' ')}"


def is_safetensors(head: bytes) -> bool:
    """Whether the first 9 bytes look like safetensors: a plausible header length and a brace."""
    return head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 1 << 27
