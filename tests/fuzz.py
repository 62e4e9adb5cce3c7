"""Runs the fuzz tests in rounds with fresh seeds until the time is up: `python -m tests.fuzz [--minutes M]`.

Owns the clock and the seeds; what is tested stands in the tests. The first failure ends it, and its seed is printed.
"""

import argparse
import secrets
import subprocess
import sys
import time

FILES = ("tests/wire/test_fuzz.py", "tests/unit/upstreams/test_sse.py", "tests/wire/edge/test_openapi.py")
LONGEST_TEST_S = 600  # one that takes longer hangs


def main() -> int:
    """The exit code: 0 when the time ran out without a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("pytest", nargs="*", help="more arguments for pytest")
    options = parser.parse_args()
    ends_s = time.monotonic() + options.minutes * 60
    rounds = 0
    while time.monotonic() < ends_s:
        seed = secrets.randbelow(1 << 32)
        rounds += 1
        sys.stdout.write(f"round {rounds}, --hypothesis-seed={seed}\n")
        sys.stdout.flush()
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--hypothesis-profile=round"]
        command += [f"--hypothesis-seed={seed}", f"--timeout={LONGEST_TEST_S}", *FILES, *options.pytest]
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
    sys.stdout.write(f"{rounds} rounds without a failure\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
