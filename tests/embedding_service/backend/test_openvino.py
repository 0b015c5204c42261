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

TWO_FIRST_PASSES = """
import sys, threading
from embedding_service.backend.openvino import ov

sys.setswitchinterval(1e-6)
barrier = threading.Barrier(2)

def ask():
    barrier.wait()
    ov.Type.i64.to_dtype()

threads = [threading.Thread(target=ask) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("both")
"""


def test_two_threads_may_begin_the_first_pass_of_a_process_at_once():
    ended = subprocess.run([sys.executable, "-c", TWO_FIRST_PASSES], capture_output=True, text=True, check=False, timeout=30)

    assert (0, "both\n") == (ended.returncode, ended.stdout), ended.stderr


def test_a_process_hears_signals_after_a_graph_was_freed_by_another_thread_than_compiled_it(tmp_path):
    prepared = prepare(str(make_tiny_trunk(tmp_path / "tiny")), cache_dir=tmp_path / "cache", engine="openvino-fp32")

    ended = subprocess.run([sys.executable, "-c", CLOSED_ELSEWHERE, prepared.graph], capture_output=True, text=True, check=False)

    assert (0, "heard\n") == (ended.returncode, ended.stdout), ended.stderr
