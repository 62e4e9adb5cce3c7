"""`python -m edge`: one edge process, set up by `MWS_EDGE_*`.

Owns nothing but the start.
"""

from edge.app import run
from edge.settings import Settings
from services.runtime.process import run as run_process

if __name__ == "__main__":
    run_process(lambda: run(Settings()))
