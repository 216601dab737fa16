"""Execute notebooks again and keep their outputs: ``make tutorials``, or ``python tutorials/execute.py FILE ...``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

WITHOUT_WIDGETS = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # progress bars of text, which every viewer shows


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.ipynb"))
    for path in paths:
        print(f"{path.name} ...", end=" ", flush=True)
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        with TemporaryDirectory() as folder:
            client = NotebookClient(
                notebook, kernel_name="python3", coalesce_streams=True, record_timing=False,
                resources={"metadata": {"path": folder}},
            )  # fmt: skip
            client.execute(env={**os.environ, **WITHOUT_WIDGETS})
        new = path.with_suffix(".new")  # a notebook that fails half-way does not take the place of a good one
        nbformat.write(notebook, new)
        new.replace(path)
        print(f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
