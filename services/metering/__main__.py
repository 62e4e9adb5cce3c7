"""`python -m services.metering`: reads the settings, runs the process.

Owns the start; refuses everything else.
"""

from services.metering.app import run
from services.metering.settings import Settings
from services.runtime import process

if __name__ == "__main__":
    process.run(lambda: run(Settings()))
