"""Seconds and memory that `flowsim measure` needs to open embeddings in each format, each in a fresh process.

    python benchmarks/embedding_files.py --rows 50000 --columns 512 --large 1000000 --out embedding_files.json

Writes a file of each format into a temporary folder, and prints a table of formats × (rows, MiB of the file, seconds
until both arrays were read once, MiB of memory at the peak). Seconds are without the start of Python. Formats whose
package is missing are left out. `--large` measures two .npy files of that many rows in float16 with the whole command.
"""

import argparse
import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.base.files import write_text

_READ = """
import json, sys, time
import numpy as np
from flowsim.observables import open_embeddings
start = time.perf_counter()
image, text = open_embeddings(sys.argv[1])
seconds = time.perf_counter() - start
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"rows": len(image), "columns": image.shape[1], "seconds": seconds, "peak": peak}))
"""


def _tensors(path: Path, image: np.ndarray, text: np.ndarray) -> None:
    from safetensors.numpy import save_file

    save_file({"image": image, "text": text}, path)


def _torch(path: Path, image: np.ndarray, text: np.ndarray) -> None:
    import torch

    torch.save({"image": torch.from_numpy(image), "text": torch.from_numpy(text)}, path)


def _hdf5(path: Path, image: np.ndarray, text: np.ndarray, **options: object) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, rows in (("image", image), ("text", text)):
            file.create_dataset(name, data=rows, **options)


def _zarr(path: Path, image: np.ndarray, text: np.ndarray) -> None:
    import zarr

    group = zarr.open_group(str(path), mode="w")
    for name, rows in (("image", image), ("text", text)):
        group.create_array(name, data=rows)


def _parquet(path: Path, image: np.ndarray, text: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = {}
    for name, rows in (("image", image), ("text", text)):
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    parquet.write_table(pa.table(columns), path)


def _table(path: Path, image: np.ndarray, text: np.ndarray) -> None:
    head = [f"{name}_{k}" for name in ("image", "text") for k in range(image.shape[1])]
    np.savetxt(path, np.concatenate([image, text], axis=1), "%.8g", ",", header=",".join(head), comments="")


def _lists(path: Path, image: np.ndarray, text: np.ndarray) -> None:
    import pandas as pd

    cells = {name: [json.dumps(row) for row in rows.tolist()] for name, rows in (("image", image), ("text", text))}
    pd.DataFrame(cells).to_csv(path, index=False)


def _parts(path: Path, image: np.ndarray, text: np.ndarray) -> None:
    """A folder of clip-retrieval in two parts."""
    for name, rows in (("img_emb", image), ("text_emb", text)):
        (path / name).mkdir(parents=True)
        for part, some in enumerate(np.array_split(rows, 2)):
            np.save(path / name / f"{name}_{part}.npy", some)


Write = Callable[[Path, np.ndarray, np.ndarray], object]
#: Format -> (name of the file, package, how it is written).
FORMATS: dict[str, tuple[str, str, Write]] = {
    ".npy (2, n, d)": ("a.npy", "numpy", lambda path, image, text: np.save(path, np.stack([image, text]))),
    ".npz": ("a.npz", "numpy", lambda path, image, text: np.savez(path, image=image, text=text)),
    ".npz, compressed": ("b.npz", "numpy", lambda path, x, y: np.savez_compressed(path, image=x, text=y)),
    ".safetensors": ("a.safetensors", "safetensors", _tensors),
    ".pt": ("a.pt", "torch", _torch),
    ".h5": ("a.h5", "h5py", _hdf5),
    ".h5, chunked and gzip": ("b.h5", "h5py", lambda path, x, y: _hdf5(path, x, y, chunks=True, compression="gzip")),
    ".zarr": ("a.zarr", "zarr", _zarr),
    ".parquet": ("a.parquet", "pyarrow", _parquet),
    ".csv, a column per number": ("a.csv", "pandas", _table),
    ".csv, lists in JSON": ("b.csv", "pandas", _lists),
    "folder of clip-retrieval": ("folder", "numpy", _parts),
}


def _peak(status: str) -> float:
    """MiB at the peak, in the status of a process. The usage that a parent sees includes its own at the fork."""
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def _measured(folder: Path, rows: int, columns: int) -> dict[str, float]:
    """Seconds and MiB at the peak of `flowsim measure image.npy text.npy`, start of Python included."""
    rng = np.random.default_rng(0)
    for name in ("image", "text"):
        held = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, (rows, columns))
        for start in range(0, rows, 50_000):
            held[start : start + 50_000] = rng.standard_normal((len(held[start : start + 50_000]), columns), np.float32)
        held.flush()
    start = time.perf_counter()
    files = [str(folder / "image.npy"), str(folder / "text.npy")]
    process, peak = subprocess.Popen([sys.executable, "-m", "flowsim", "measure", *files], stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        with contextlib.suppress(OSError):  # the process has ended
            peak = max(peak, _peak(Path(f"/proc/{process.pid}/status").read_text()))
        time.sleep(0.05)
    assert process.returncode == 0
    return {"rows": rows, "seconds": time.perf_counter() - start, "peak": peak}


def main() -> None:
    """Write, read and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--large", type=int, help="rows of two further files in float16 for the whole command")
    parser.add_argument("--folder", help="where temporary files are written")
    parser.add_argument("--out", help="file for the numbers, .json")
    given = parser.parse_args()
    measured: dict[str, Any] = {"columns": given.columns, "formats": {}}
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((given.rows, given.columns), np.float32) for _ in range(2))
    print(f"float32, {given.columns} columns; arrays of both modalities together {2 * image.nbytes / 2**20:.0f} MiB")
    print("| format | rows | MiB of the file | seconds | MiB at the peak |")
    print("|---|---|---|---|---|")
    for name, (file, package, write) in FORMATS.items():
        if importlib.util.find_spec(package) is None:
            continue
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            path = Path(folder) / file
            write(path, image, text)
            parts = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
            size = sum(one.stat().st_size for one in parts) / 2**20
            done = subprocess.run([sys.executable, "-c", _READ, str(path)], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        assert (found["rows"], found["columns"]) == image.shape
        print(f"| {name} | {found['rows']:,} | {size:.0f} | {found['seconds']:.2f} | {found['peak']:.0f} |", flush=True)
        measured["formats"][name] = {**found, "size": size}
    if given.large:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            measured["large"] = _measured(Path(folder), given.large, given.columns)
        print(f"flowsim measure, {given.large:,} rows in float16: {measured['large']}")
    if given.out:
        write_text(given.out, json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
