"""The file: preamble, chunks, index, trailer.

`envelope.py` and `index.py` turn bytes into objects and back, without I/O. `sources.py` gives bytes at an offset,
`reader.py` and `writer.py` move chunks, `atomic.py` puts a finished file where the old one was.
"""
