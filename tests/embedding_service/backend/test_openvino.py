import subprocess
import sys

from embedding_service.models.prepare import prepare
from tests.tiny_trunk import make_tiny_trunk

CLOSED_ELSEWHERE = """
import os, signal, sys, threading
from pathlib import Path
from embedding_service.backend.openvino import compile_graph

kept = [compile_graph(Path(sys.argv[1]), "f32", 1)]
closing = threading.Thread(target=kept.clear)
closing.start()
closing.join()
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_process_hears_signals_after_a_graph_was_freed_by_another_thread_than_compiled_it(tmp_path):
    prepared = prepare(str(make_tiny_trunk(tmp_path / "tiny")), cache_dir=tmp_path / "cache", engine="openvino-fp32")

    ended = subprocess.run([sys.executable, "-c", CLOSED_ELSEWHERE, prepared.graph], capture_output=True, text=True, check=False)

    assert (0, "heard\n") == (ended.returncode, ended.stdout), ended.stderr
