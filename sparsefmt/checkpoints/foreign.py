"""Files of other formats, whole but not what was asked for: what each is, and in one line how its tensors come here."""

from __future__ import annotations

from sparsefmt.container import envelope, sniff
from sparsefmt.container.remote_path import Place, RemotePath, head_of
from sparsefmt.errors import FormatError

FOREIGN = "file-foreign"
"""The code of the error: nothing is wrong with the file."""

_PROTOCOLS = range(2, 6)
"""Of pickles: the second byte of a file; the first is 0x80."""

_RECIPES = {
    "safetensors": "convert it with `sparsefmt convert`",
    "a PyTorch checkpoint": "convert it with `sparsefmt convert`",
    "a .npz archive": (
        "python -c \"import numpy, sparsefmt; sparsefmt.save_file(dict(numpy.load('NAME')), 'STEM.sparsefmt')\""
    ),
    "a .npy array": (
        "python -c \"import numpy, sparsefmt; sparsefmt.save_file({'array': numpy.load('NAME')}, 'STEM.sparsefmt')\""
    ),
    "an ONNX model": (
        'python -c "import onnx.numpy_helper as helper, sparsefmt; sparsefmt.save_file({t.name: helper.to_array(t) for'
        " t in helper.onnx.load('NAME').graph.initializer}, 'STEM.sparsefmt')\""
    ),
    "an HDF5 file": (
        'if Keras wrote it, python -c "import keras, sparsefmt; sparsefmt.save_file({v.path: v.numpy() for v in'
        " keras.saving.load_model('NAME').variables}, 'STEM.sparsefmt')\""
    ),
    "a Keras model": (
        'python -c "import keras, sparsefmt; sparsefmt.save_file({v.path: v.numpy() for v in'
        " keras.saving.load_model('NAME').variables}, 'STEM.sparsefmt')\""
    ),
    "a GGUF file": (
        "transformers reads it: AutoModelForCausalLM.from_pretrained('.', gguf_file='NAME').save_pretrained('STEM'),"
        " then `sparsefmt convert STEM`"
    ),
    "a TensorFlow Lite model": "convert the model that it was made from",
    "a zip archive": "unpack it first",
    "gzip compressed data": "unpack it first",
    "zstd compressed data": "unpack it first",
}
"""What to do with each; NAME and STEM are those of the file."""


def format_of(path: Place) -> str | None:
    """What a file that is neither damaged nor ours is, as one of the keys of the recipes; else None."""
    head = head_of(path, sniff.HEAD_SIZE)
    if sniff.is_safetensors(head):
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _format_of_archive(path)
    if head[:1] == b"\x80" and len(head) > 1 and head[1] in _PROTOCOLS:
        return "a PyTorch checkpoint"
    # a field of protobuf, the version: nothing but the name tells what it is of
    if path.suffix == ".onnx" and head[:1] == b"\x08":
        return "an ONNX model"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    for signature, file_format in (
        (b"GGUF", "a GGUF file"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a .npy array"),
        (b"\x1f\x8b", "gzip compressed data"),
        (b"\x28\xb5\x2f\xfd", "zstd compressed data"),
    ):
        if head.startswith(signature):
            return file_format
    return None


def is_sparsefmt(path: Place) -> bool:
    return head_of(path, sniff.HEAD_SIZE).startswith(envelope.MAGIC)


def foreign(path: Place, file_format: str, expected: str) -> FormatError:
    """The error for a file of a format that `format_of` gave, in place of what was expected, "a .sparsefmt file"."""
    return FormatError(FOREIGN, f"{path}: not {expected} but {file_format}: {recipe(path, file_format)}")


def recipe(path: Place, file_format: str) -> str:
    """How the tensors of a file of that format come into a .sparsefmt file."""
    return _RECIPES[file_format].replace("NAME", path.name).replace("STEM", path.stem)


def _format_of_archive(path: Place) -> str | None:
    if isinstance(path, RemotePath):  # the list of its members is at its end, and another request
        return "a PyTorch checkpoint" if path.suffix in (".bin", ".pt", ".pth") else "a zip archive"
    import zipfile  # seldom needed

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):  # cut off
        return None
    if any(name.endswith("/data.pkl") for name in names):
        return "a PyTorch checkpoint"
    if names and all(name.endswith(".npy") for name in names):
        return "a .npz archive"
    if "model.weights.h5" in names:
        return "a Keras model"
    return "a zip archive"
