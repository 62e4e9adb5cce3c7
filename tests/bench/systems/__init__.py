"""The systems that are measured, one module each.

Owns the list of them; refuses to hold what is particular to one."""

from tests.bench.options import Options
from tests.bench.systems.direct import Direct
from tests.bench.systems.envoy import Envoy
from tests.bench.systems.litellm import LiteLlm
from tests.bench.systems.nginx import Nginx
from tests.bench.systems.ours import Ours
from tests.bench.systems.portkey import Portkey
from tests.bench.systems.system import System


def all_systems(options: Options) -> tuple[System, ...]:
    return Ours(options), LiteLlm(options), Portkey(options), Nginx(options), Envoy(options), Direct(options)
