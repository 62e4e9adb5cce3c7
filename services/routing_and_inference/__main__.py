"""`python -m services.routing_and_inference`: reads the settings, runs the process.

Owns the start; refuses everything else.
"""

from services.routing_and_inference.app import run
from services.routing_and_inference.settings import Settings
from services.runtime import process

if __name__ == "__main__":
    process.run(lambda: run(Settings()))
