"""Hides the lines that TensorFlow writes while it starts, and nothing else.

They are written by C++ straight to file descriptor 2, some of them before the setting
TF_CPP_MIN_LOG_LEVEL is read, so Python's sys.stderr cannot catch them. They say how the
binary was compiled and that no GPU was found. Tutorials hide them, so that the first
lines a reader meets are the tutorial's own; no other code needs this file.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_START_UP_LINE = re.compile(
    rb"[IWE]0000 00:00:"  # severity and the clock of a log that is not set up yet
    rb"|WARNING: All log messages before absl::InitializeLog"
    rb"|To enable the following instructions:"
)


@contextmanager
def start_up() -> Iterator[None]:
    """Holds file descriptor 2 back inside the block, then passes on what is left.

    Exceptions leave the block as they came, and other lines, warnings included, are
    written when it ends.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # later lines: errors only
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            rest = [line for line in held if not _START_UP_LINE.match(line)]
            os.write(2, b"".join(rest))
