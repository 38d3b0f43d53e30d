"""Models from elsewhere: what a name means, which version of it fits this machine, and the transfer.

`name.py` reads what was typed, `hub.py` asks the Hugging Face hub in a child process (`child.py`),
`choose.py` decides, `estimate.py` has the engine say what a model takes before it is here, `snapshot.py`
knows repositories of safetensors, `link.py` fetches a single file, `store.py` knows where things lie, and
`job.py` does it all in order.
Knows nothing of HTTP's server side.
"""

from llm_node.pull.job import Job, Pulls, Wish
from llm_node.pull.store import Partial

__all__ = ["Job", "Partial", "Pulls", "Wish"]
