"""Pack what `benchmarks/gpu.py` needs on a machine without this project's packages and data, and print the call.

    python benchmarks/gpu_pack.py [--photos FOLDER] [--features FILE.npz] [--train 6000] [--test 1000] [--stages ...]

fills a folder of the checkout that git ignores:

- `wheels/`: packages that such a machine lacks (`--lacks`), for Python 3.12 on Linux; all others are expected there.
- `data/photos/`: the first `--train` and `--test` photos of their splits with captions, without decoding them.
- `data/features.npz`: features of the splits train and test.
- `held/`: the records in `--held`, so that the stages go on.
- `run.sh`: unpacks the wheels and runs the stages.

FOLDER holds `captions.tsv`, `splits.tsv` (columns filename, split, shard) and tar shards, FILE.npz `image`, `text` and
`split`. Everything together with the checkout stays below `--mebibytes`.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

_ROOT = Path(__file__).parents[1]
LACKS = ("open_clip_torch==3.3.0", "ftfy==6.3.1", "wcwidth", "tyro==1.0.17", "docstring_parser", "typeguard",
         "h5netcdf==1.8.2", "platformdirs")  # fmt: skip

RUN = """\
#!/usr/bin/env bash
# bash run.sh OUT [options of benchmarks/gpu.py]
set -euo pipefail
here=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
out=$1; shift
# A later call on the same machine goes on with what is here.
site=${{TMPDIR:-/tmp}}/flowsim-gpu
if [[ ! -d $site ]]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$here"/wheels/*.whl
fi
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 MPLBACKEND=Agg
cd "$here/.."
# Records of an earlier call, which goes on.
if [[ -d $here/held ]]; then cp "$here"/held/* "$out"; fi
python3 benchmarks/gpu.py --out "$out" --work "$site/work" --data "$here/data" "$@" 2>&1 | tee "$out/log.txt"
"""


def pack_photos(source: Path, target: Path, counts: dict[str, int]) -> int:
    """Copy photos with their captions; returns their number."""
    target.mkdir(parents=True)
    rows = [line.split("\t") for line in (source / "splits.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    chosen: dict[str, str] = {}
    for name, split, *_ in rows:
        if list(chosen.values()).count(split) < counts.get(split, 0):
            chosen[name] = split
    for split in counts:
        with tarfile.open(target / f"{split}-0000.tar", "w") as out:
            for shard in sorted(source.glob("*.tar")):
                with tarfile.open(shard) as held:
                    for member in held:
                        if chosen.get(member.name) == split and (file := held.extractfile(member)) is not None:
                            content = file.read()
                            copy = tarfile.TarInfo(member.name)
                            copy.size = len(content)
                            out.addfile(copy, io.BytesIO(content))
    head, *captions = (source / "captions.tsv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in captions if line.partition("\t")[0] in chosen]
    (target / "captions.tsv").write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")
    lines = [f"{name}\t{split}" for name, split in chosen.items()]
    (target / "splits.tsv").write_text("\n".join(["filename\tsplit", *lines]) + "\n", encoding="utf-8")
    return len(chosen)


def pack_features(source: Path, target: Path) -> None:
    """Copy the features of the splits train and test."""
    with np.load(source, allow_pickle=False) as held:
        keep = np.isin(held["split"], ("train", "test"))
        np.savez(target, **{name: held[name][keep] for name in ("image", "text", "split")})


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=".gpu", help="name of the folder")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--held", type=Path, help="folder with the records of an earlier call")
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--lacks", nargs="*", default=LACKS, help="packages to take along")
    parser.add_argument("--mebibytes", type=float, default=64.0)
    parser.add_argument("options", nargs="*", help="options of benchmarks/gpu.py, after --")
    options = parser.parse_args()
    # Before an earlier folder is emptied.
    needed = [options.photos / name for name in ("captions.tsv", "splits.tsv")] if options.photos is not None else []
    needed += [path for path in (options.features, options.held) if path is not None]
    for path in needed:
        if not path.exists():
            parser.error(f"There is no {str(path)!r}. Check the path.")
    folder = _ROOT / options.folder
    wheels = folder / "wheels"
    shutil.rmtree(folder / "data", ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    if not wheels.is_dir() and options.lacks:
        call = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(wheels)]
        call += ["--python-version", "3.12", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64"]
        subprocess.run([*call, "--platform", "manylinux2014_x86_64", *options.lacks], check=True)
    if options.photos is not None:
        counts = {"train": options.train, "test": options.test}
        print(f"{pack_photos(options.photos, folder / 'data' / 'photos', counts):,} photos")
    if options.features is not None:
        pack_features(options.features, folder / "data" / "features.npz")
    shutil.rmtree(folder / "held", ignore_errors=True)
    if options.held is not None:
        (folder / "held").mkdir()
        for record in sorted(options.held.glob("*.json")):
            shutil.copy(record, folder / "held")
    (folder / "run.sh").write_text(RUN.format(), encoding="utf-8")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=_ROOT, capture_output=True, check=True).stdout
    checkout = sum((_ROOT / name.decode()).stat().st_size for name in tracked.split(b"\0") if name)
    total = (size_of(folder) + checkout) / 2**20
    print(f"{size_of(folder) / 2**20:.1f} MiB in {options.folder} and {checkout / 2**20:.1f} MiB of the checkout")
    if total > options.mebibytes:
        sys.exit(f"Together they exceed {options.mebibytes:g} MiB. Take fewer photos, or leave out the features.")
    print(f"bash {options.folder}/run.sh OUT {' '.join(options.options)}".rstrip())


if __name__ == "__main__":
    main()
