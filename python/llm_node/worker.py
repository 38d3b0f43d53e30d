"""A worker process, or one that checks an engine: how it is started, and what it does first, which is to
enter Rust and stay there.

It is this file, run by the node's own interpreter and shut off from the surroundings: no module is looked for
in the current directory, in PYTHONPATH or among a user's or an environment's packages. So nothing that lies
there can take the place of a module. What it needs beside the standard library is one file, and the node says
where that is: the `_core` that it runs itself, however it was installed.
"""

from __future__ import annotations

import sys


def command(core: str, function: str = "run_worker") -> list[str]:
    """Program and arguments of a worker, before its endpoint. `core`: the file of `_core`; `function`: what
    of it is called with the endpoint."""
    flags = ["-s", "-S"]  # no packages
    if sys.version_info >= (3, 11):
        flags.append("-P")  # and no folder of the script, see below
    if sys.flags.ignore_environment:
        # Of Python's variables a worker gets PYTHONHOME alone, which an interpreter may need to start.
        flags.append("-E")
    return [sys.executable, *flags, __file__, core, function]


def main() -> int:
    if len(sys.argv) != 4:
        sys.stderr.write("this is started by the node; run `llm-node` instead\n")
        return 2
    from importlib.machinery import ExtensionFileLoader, ModuleSpec

    _, core, function, argument = sys.argv
    loader = ExtensionFileLoader("llm_node._core", core)
    module = loader.create_module(ModuleSpec(loader.name, loader, origin=core))
    loader.exec_module(module)
    code: int = getattr(module, function)(argument)
    return code


if __name__ == "__main__":
    if sys.version_info < (3, 11):
        del sys.path[0]
    import os
    import signal

    # Python's handler would wait for ever for its turn, and then write a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Not sys.exit: an engine's static destructors would run, beside threads that it may have left.
    os._exit(main())
