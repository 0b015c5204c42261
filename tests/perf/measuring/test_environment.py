import socket
import subprocess
from pathlib import Path

import msgspec
import pytest

from perf.measuring.environment import UNKNOWN, commit, commit_of, cpu_of, machine, release_of, versions
from perf.results import Machine

CPUINFO = (
    "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512_bf16 sse\n\nprocessor\t: 1\nmodel name\t: Other\n"
)


def test_the_processor_and_what_matters_of_it_are_read() -> None:
    assert ("Some CPU @ 2 GHz", ("avx2", "avx512_bf16")) == cpu_of(CPUINFO)


def test_a_processor_without_a_name_is_its_architecture() -> None:
    name, features = cpu_of("processor\t: 0\nFeatures\t: fp asimd\n")

    assert name
    assert ("asimd",) == features


def test_this_machine_can_be_written_down() -> None:
    found = machine()

    assert found.num_cores > 0
    assert found.memory_bytes > 0
    assert found == msgspec.json.decode(msgspec.json.encode(found), type=Machine)


def test_this_machine_is_described_and_not_named() -> None:
    assert socket.gethostname() not in msgspec.json.encode(machine()).decode()


@pytest.mark.parametrize(
    ("kernel", "expected"), [("6.8.0-45-generic", "6.8.0"), ("5.10.1-acme-prod.x86_64", "5.10.1"), ("6.1.", "6.1"), ("x", "")]
)
def test_of_the_kernel_the_number_alone_is_told(kernel: str, expected: str) -> None:
    assert expected == release_of(kernel)


def test_packages_that_are_not_installed_are_left_out() -> None:
    assert {"numpy"} == set(versions(["numpy", "no-such-package-anywhere"]))


def test_a_dirty_tree_has_a_plus() -> None:
    assert "abc" == commit_of("abc", "")
    assert "abc+" == commit_of("abc", " M file")


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    assert UNKNOWN == commit(tmp_path)

    def git(*arguments: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True)

    file = tmp_path / "file"
    file.write_text("one")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    clean = commit(tmp_path)
    file.write_text("two")

    assert clean
    assert UNKNOWN != clean
    assert commit(tmp_path) == clean + "+"
