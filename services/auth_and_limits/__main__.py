"""`python -m services.auth_and_limits`: one process of auth-and-limits.

Owns the entrance; refuses to hold anything else.
"""

from services.auth_and_limits.app import run as serve
from services.auth_and_limits.settings import Settings
from services.runtime.process import run

if __name__ == "__main__":
    run(lambda: serve(Settings()))
