"""What the figures were taken on.

Owns the description of the machine; refuses to read anything that changes a measurement."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

_PACKAGES: Final = ("grpcio", "uvloop", "uvicorn", "fastapi", "msgspec", "pyreqwest", "protobuf")


def describe() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_at_start": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
