"""Everything that runs on Ray: the cluster, tokenisation in parallel, collection by actors and what steers them."""

import os

# Ray reads it when it is imported. Else a thread that outlives the connection would, by any call, start a Ray of its
# own or join whichever runs on this machine.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
