"""What `tools/fuzz` does inside the environment: a process with atheris for each surface."""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

LOCK = TOP / "tools" / "requirements-fuzz.lock"
KEPT = TOP / ".fuzz"
#: atheris lies in a folder of its own: no other command sees it.
SITE = KEPT / "site"
#: The largest input, in bytes.
LARGEST = 65_536


def main(arguments: list[str]) -> int:
    """Run; return 1 if something was found."""
    parser = argparse.ArgumentParser(prog="tools/fuzz")
    parser.add_argument("surfaces", nargs="*", metavar="SURFACE")
    parser.add_argument("--seconds", type=int, default=60, metavar="S")
    parser.add_argument("--megabytes", type=int, default=600, metavar="M")
    parser.add_argument("--again", type=Path, metavar="FILE")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    install()
    if options.inside:
        fuzz(options.surfaces[0], options)
    from tests.faults.surfaces import SURFACES

    names = options.surfaces or list(SURFACES)
    unknown = [name for name in names if name not in SURFACES]
    if unknown or (options.again and len(names) != 1):
        parser.error(f"a SURFACE is one of {', '.join(SURFACES)}; --again takes one")
    if options.again:
        SURFACES[names[0]].read(options.again.read_bytes())
        print(f"{names[0]}: {options.again} is read as it should be")
        return 0
    return int(sum(outside(name, options) for name in names) > 0)


def outside(name: str, options: argparse.Namespace) -> bool:
    """Fuzz one surface in a process of its own, which does not return; tell what came of it."""
    told = ["--seconds", str(options.seconds), "--megabytes", str(options.megabytes)]
    with tempfile.TemporaryFile("w+") as out:
        code = subprocess.run(
            [sys.executable, __file__, name, "--inside", *told], stderr=out, stdout=out, check=False
        ).returncode
        out.seek(0)
        text = out.read()
    runs = re.findall(r"Done (\d+) runs|^#(\d+)\s", text, re.MULTILINE)
    covered = re.findall(r"cov: (\d+)", text)
    count = max((int(a or b) for a, b in runs), default=0)
    places = covered[-1] if covered else "0"
    print(f"{name:10}{count:>12,} inputs{int(places):>8,} places{'  FOUND' if code else ''}")
    if code:
        print("\n".join(text.splitlines()[-40:]), file=sys.stderr)
    sys.stdout.flush()
    return bool(code)


def install() -> None:
    """Put atheris beside the environment, once a lock."""
    stamp = SITE / "made-from"
    if not stamp.exists() or stamp.read_bytes() != LOCK.read_bytes():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = ["--no-deps", "--require-hashes", "--upgrade", "--requirement", str(LOCK)]
        done = subprocess.run([*pip, "--target", str(SITE), *wanted], check=False)
        if done.returncode:
            sys.exit("tools/fuzz: atheris could not be installed; it has wheels for Linux only")
        stamp.write_bytes(LOCK.read_bytes())
    sys.path.append(str(SITE))


def fuzz(name: str, options: argparse.Namespace) -> None:
    """Fuzz one surface; never returns."""
    import atheris

    with atheris.instrument_imports(include=["eventlog"]):
        from tests.faults import surfaces
    surface = surfaces.SURFACES[name]
    corpus, found = KEPT / "corpus" / name, KEPT / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    for n, data in enumerate(surface.first()):
        (corpus / f"first-{n}").write_bytes(data)
        surface.read(data)  # everything is imported before memory is counted
    rng = random.Random(0)

    def change(data: bytes, largest: int, seed: int) -> Any:
        """Change an input as atheris would, or as one who knows frames; then mend it."""
        rng.seed(seed)
        data = atheris.Mutate(data, largest) if rng.random() < 0.5 else surfaces.change(data, rng)
        return (surface.mend(data) if rng.random() < 0.8 else data)[:largest]

    surfaces.limit_memory(options.megabytes)
    flags = {
        "max_total_time": options.seconds,
        "max_len": LARGEST,
        "timeout": 30,
        "rss_limit_mb": 0,
        "len_control": 0,
        "artifact_prefix": f"{found}/{name}-",
    }
    command = [sys.argv[0], *(f"-{key}={value}" for key, value in flags.items()), str(corpus)]
    atheris.Setup(command, surface.read, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
