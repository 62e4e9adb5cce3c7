"""Generates the typed stubs of proto/ beside their sources, or checks that the committed ones are fresh.

Owns the one protoc invocation; buf only lints and formats.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BIN = Path(sys.executable).parent


def generate(proto: Path, out: Path) -> None:
    """Writes `_pb2.py(i)` for every file, and `_pb2_grpc.py(i)` for those that hold a service."""
    sources = sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto"))
    services = [source for source in sources if source.endswith("_service.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I."]
    messages = ["--plugin=" + str(BIN / "protoc-gen-mypy"), f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    stubs = [
        "--plugin=" + str(BIN / "protoc-gen-mypy_grpc"),
        f"--grpc_python_out={out}",
        f"--mypy_grpc_out=quiet:{out}",
    ]
    subprocess.run([*command, *messages, *sources], cwd=proto, check=True)
    subprocess.run([*command, *stubs, *services], cwd=proto, check=True)


def generated(root: Path) -> dict[str, bytes]:
    """Every generated file below `root`, by relative path."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*_pb2*.py*") if path.suffix != ".pyc"
    }


def main() -> None:
    arguments = sys.argv[1:]
    proto = Path(arguments[-1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        generate(proto, out)
        fresh, committed = generated(out), generated(proto)
        if "--check" in arguments:
            stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
            if stale:
                sys.exit("stubs are not fresh, run `make protos`:\n  " + "\n  ".join(stale))
            return
        for name in committed.keys() - fresh.keys():
            (proto / name).unlink()
        for name in fresh:
            shutil.copyfile(out / name, proto / name)


if __name__ == "__main__":
    main()
