"""Print the GPU backend that `make run` is to build for: "cuda", "metal" or "cpu".

A choice of the Makefile's, made for somebody who typed `make run`. The program itself never falls
back to the CPU: there, `auto` without a GPU is an error.
"""

from __future__ import annotations

import contextlib
import platform


def detect() -> str:
    if platform.system() == "Darwin":
        return "metal"
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() > 0:
            return "cuda"
    return "cpu"


if __name__ == "__main__":
    print(detect())  # stdout is this tool's answer
